"""A blob read from a registry as a stream, for whoever needs its bytes once and keeps none of them: taken up again after a cut."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import IO

from sandbox.errors import RegistryError
from sandbox.image.blobs import verified
from sandbox.image.registry.repository import Repository
from sandbox.image.registry.wire import CHUNK, Answer, Broken
from sandbox.oci import Descriptor


def blob_stream(sources: Sequence[Repository], descriptor: Descriptor) -> IO[bytes]:
    """The blob from the first source that has it (mirrors come first), verified at its end. RegistryError, DigestMismatch."""
    for place, source in enumerate(sources):
        reader = _BlobReader(source, descriptor)
        try:
            reader.begin()
        except RegistryError:
            reader.close()
            if place == len(sources) - 1:
                raise
            continue
        return verified(io.BufferedReader(reader, CHUNK), descriptor)
    raise AssertionError("no source")


class _BlobReader(io.RawIOBase):
    def __init__(self, source: Repository, descriptor: Descriptor) -> None:
        self._source, self._descriptor = source, descriptor
        self._answer: Answer | None = None
        self._place = 0
        self._attempt = 0

    def begin(self) -> None:
        """Ask for the bytes from here on. RegistryError."""
        answer = self._source.open_blob(self._descriptor, self._place)
        left = self._place if answer.status == 200 else 0  # it cannot begin in the middle
        while left and (passed := answer.read(min(CHUNK, left))):
            left -= len(passed)
        self._answer = answer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        while True:
            try:
                if self._answer is None:
                    self.begin()
                data = self._answer.read(len(buffer)) if self._answer else b""
            except Broken as err:
                self._again(err)
                continue
            if data:
                self._attempt = 0
            elif self._answer:
                self._answer.done()
            self._place += len(data)
            buffer[: len(data)] = data
            return len(data)

    def _again(self, err: Broken) -> None:
        """After a cut: rest, then ask for what is left. Broken when that was tried often enough."""
        self._drop()
        self._attempt += 1
        wire = self._source.connection.wire
        if self._attempt >= wire.patience.tries:
            raise err
        wire.rest(self._attempt)

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer = None

    def close(self) -> None:
        self._drop()
        super().close()
