"""Blobs on their way here: written and verified by one thread, read meanwhile by another, taken up again after a cut.

A blob is fetched by whoever holds the lock on its partial file, in whatever process; the others wait and find it done. What
a killed fetch left is verified again from its first byte and gone on with.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Sequence
from typing import IO

import msgspec

from sandbox.errors import DigestMismatch, RegistryError
from sandbox.image.blobs import Hasher, Partial, check
from sandbox.image.registry.access import Access
from sandbox.image.registry.progress import BlobProgress, Stride, Teller
from sandbox.image.registry.repository import Repository
from sandbox.image.registry.wire import CHUNK, Answer, Broken
from sandbox.image.store import Store
from sandbox.oci import Descriptor


class Growing:
    """A file that is still written. Readers begin when it does, and see its end only when it is complete and verified."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._fd: int | None = None
        self._size = 0
        self._is_whole = False
        self._error: BaseException | None = None

    def open(self, fd: int) -> None:
        """This is the file; a descriptor of our own is kept of it."""
        with self._changed:
            self._fd = os.dup(fd)
            self._changed.notify_all()

    def grow(self, size: int) -> None:
        """So many bytes of it are there."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def finish(self) -> None:
        """It is complete and verified."""
        with self._changed:
            self._is_whole = True
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """It will never be complete: readers raise this."""
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def wait_whole(self) -> None:
        """Until it is complete; raises what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_whole or self._error is not None)
            if self._error is not None:
                raise self._error

    def read_at(self, offset: int, buffer: bytearray | memoryview) -> int:
        """Bytes from there into a buffer, waiting for at least one; how many, 0 at the end. Raises what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self._size > offset or self._is_whole or self._error is not None)
            if self._error is not None:
                raise self._error
            fd, there = self._fd, self._size - offset
        return os.preadv(fd, [memoryview(buffer)[:there]], offset) if fd is not None and there > 0 else 0

    def close(self) -> None:
        """No reader needs it any more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class GrowingReader(io.RawIOBase):
    """Reads a Growing from its beginning."""

    def __init__(self, growing: Growing) -> None:
        self._growing = growing
        self._offset = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        """Waits for bytes."""
        count = self._growing.read_at(self._offset, buffer)
        self._offset += count
        return count


class Fetcher(msgspec.Struct):
    """Fetches blobs of one image; `sources` are tried one after the other, mirrors first."""

    store: Store
    access: Access
    sources: Sequence[Repository]
    tell: Teller
    _flights: dict[str, Growing] = msgspec.field(default_factory=dict)

    def growing(self, descriptor: Descriptor) -> Growing:
        """The blob's bytes, whether or not `fetch` has begun."""
        return self._flights.setdefault(descriptor.digest, Growing())

    def reader(self, descriptor: Descriptor) -> IO[bytes]:
        """The blob from its beginning, as it comes."""
        return io.BufferedReader(GrowingReader(self.growing(descriptor)), CHUNK)

    def close(self) -> None:
        """Give the files back."""
        for growing in self._flights.values():
            growing.close()

    def fetch(self, descriptor: Descriptor) -> None:
        """Bring the blob here. What goes wrong is also its readers' to raise. RegistryError, DigestMismatch."""
        growing = self.growing(descriptor)
        try:
            with self.store.shared(), self.store.partial_blob(descriptor.digest, self.access.poll) as partial:
                if partial is None:
                    self._use_stored(descriptor, growing)
                else:
                    growing.open(partial.fd)
                    self._from_any(descriptor, partial, growing)
                    partial.keep()
            growing.finish()
        except BaseException as err:
            growing.fail(err)
            raise

    def _use_stored(self, descriptor: Descriptor, growing: Growing) -> None:
        with self.store.blob_path(descriptor.digest).open("rb") as whole:
            growing.open(whole.fileno())
        growing.grow(descriptor.size)

    def _from_any(self, descriptor: Descriptor, partial: Partial, growing: Growing) -> None:
        for place, source in enumerate(self.sources):
            try:
                self._from(source, descriptor, partial, growing)
                return
            except RegistryError:
                if place == len(self.sources) - 1 or self.access.stop.is_set():
                    raise

    def _from(self, source: Repository, descriptor: Descriptor, partial: Partial, growing: Growing) -> None:
        """Fetch; what an earlier fetch left and was not the blob's goes, so that the next try begins anew."""
        try:
            _Fetch(self, source, descriptor, partial, growing).run()
        except DigestMismatch:
            partial.start_anew()
            raise


class _Fetch:
    """One blob from one source."""

    def __init__(self, fetcher: Fetcher, source: Repository, descriptor: Descriptor, partial: Partial, growing: Growing) -> None:
        self._fetcher, self._source, self._descriptor = fetcher, source, descriptor
        self._fd, self._growing = partial.fd, growing
        self._hasher = Hasher()
        self._stride = Stride(CHUNK)
        self._have = 0

    def run(self) -> None:
        """Until all of it is there and right. Broken, RegistryError, DigestMismatch."""
        try:
            self._take_up()
            attempt, wire = 0, self._fetcher.access.wire
            while self._have < self._descriptor.size:
                before = self._have
                try:
                    if self._read(self._source.open_blob(self._descriptor, self._have)):
                        break
                except Broken:
                    attempt = 1 if self._have > before else attempt + 1
                    if attempt >= wire.patience.tries:
                        raise
                    wire.rest(attempt)
            check(self._descriptor, self._hasher.digest(), self._have)
        finally:
            self._hasher.close()

    def _take_up(self) -> None:
        """What an earlier fetch left counts from its first byte."""
        while data := os.pread(self._fd, CHUNK, self._have):
            self._account(data)

    def _account(self, data: bytes) -> None:
        self._hasher.update(data)
        self._have += len(data)
        self._growing.grow(self._have)
        self._fetcher.tell(BlobProgress(self._descriptor.digest, "downloading", self._have, self._descriptor.size))

    def _read(self, answer: Answer) -> bool:
        """Everything this answer holds; True when the server says that is all there is. Broken when it was cut."""
        with contextlib.closing(answer):
            skipped = self._have if answer.status == 200 else 0
            while data := self._next(answer):
                self._fetcher.tell.count(len(data))
                if skipped:
                    passed = min(skipped, len(data))
                    skipped, data = skipped - passed, data[passed:]
                if data:
                    self._write(data)
                if self._fetcher.access.stop.is_set():
                    raise RegistryError("transfer: stopped")
            answer.done()
        return True

    def _next(self, answer: Answer) -> bytes:
        self._stride.begin()
        data = answer.read(self._stride.size)
        self._stride.end()
        return data

    def _write(self, data: bytes) -> None:
        if self._have + len(data) > self._descriptor.size:
            wanted = self._descriptor.digest
            message = f"blob {wanted[:19]}…: expected {self._descriptor.size} bytes, got more"
            raise DigestMismatch(message, expected=wanted, actual=wanted)
        view = memoryview(data)
        offset = self._have
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written
        self._account(data)
