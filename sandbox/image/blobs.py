"""Content-addressed files: written once under their digest, read only through a verifying reader."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from sandbox.errors import DigestMismatch, ImageError
from sandbox.image.flights import locked_file
from sandbox.oci import Descriptor, Digest

if TYPE_CHECKING:
    import queue
    import threading

_CHUNK = 1 << 20
_TEMPORARY, _PARTIAL = ".new-", ".part-"


class Hasher:
    """sha256 and length of a stream; from the second chunk on in a thread of its own (hashlib lets go of the GIL)."""

    def __init__(self) -> None:
        import hashlib  # with OpenSSL; a start reads no layer
        import queue

        self._sha256 = hashlib.sha256()
        self._queue: queue.Queue[bytes | memoryview | None] = queue.Queue(maxsize=4)
        self._thread: threading.Thread | None = None
        self._first: bytes | memoryview | None = None
        self.size = 0

    def update(self, chunk: bytes | memoryview) -> None:
        """Take a chunk; the caller must not change it afterwards."""
        self.size += len(chunk)
        if self._thread:
            self._queue.put(chunk)
        elif self._first is None:
            self._first = chunk
        else:
            import threading

            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self._queue.put(self._first)
            self._queue.put(chunk)

    def _run(self) -> None:
        while (chunk := self._queue.get()) is not None:
            self._sha256.update(chunk)

    def digest(self) -> Digest:
        """The digest of everything taken; ends the thread."""
        if self._thread:
            self.close()
        elif self._first is not None:
            self._sha256.update(self._first)
            self._first = b""
        return Digest(f"sha256:{self._sha256.hexdigest()}")

    def close(self) -> None:
        """End the thread, if there is one; to be called when `digest` will not be."""
        if self._thread and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()


def digest_of(chunks: Iterable[bytes | memoryview]) -> tuple[Digest, int]:
    """Digest and length of all chunks together."""
    hasher = Hasher()
    try:
        for chunk in chunks:
            hasher.update(chunk)
        return hasher.digest(), hasher.size
    finally:
        hasher.close()


class VerifiedReader(io.RawIOBase):
    """Passes bytes on and raises DigestMismatch at the end (or past the promised size) when they are not the promised ones."""

    def __init__(self, stream: IO[bytes], descriptor: Descriptor) -> None:
        import hashlib  # as in Hasher

        self._stream = stream
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._seen = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        count = self._stream.readinto(buffer)  # type: ignore[attr-defined]  # of every stream there is, but not of IO
        self._seen += count
        self._sha256.update(memoryview(buffer)[:count])
        if self._seen > self._descriptor.size or (not count and len(buffer)):
            check(self._descriptor, Digest(f"sha256:{self._sha256.hexdigest()}"), self._seen)
        return int(count)

    def close(self) -> None:
        self._stream.close()
        super().close()


def verified(stream: IO[bytes], descriptor: Descriptor) -> IO[bytes]:
    """The stream through a VerifiedReader; closing it closes the stream."""
    return io.BufferedReader(VerifiedReader(stream, descriptor), _CHUNK)


def check(promised: Descriptor, digest: Digest, size: int) -> None:
    """Raise DigestMismatch unless digest and size are the promised ones."""
    wanted = promised.digest
    if size != promised.size:
        raise DigestMismatch(f"blob {wanted[:19]}…: expected {promised.size} bytes, got {size}", expected=wanted, actual=digest)
    if digest != wanted:
        raise DigestMismatch(f"blob {wanted[:19]}…: expected {wanted}, got {digest}", expected=wanted, actual=digest)


class Partial(msgspec.Struct, frozen=True):
    """A blob on its way here: the file of `fd`, which stands at `path` until `keep`."""

    fd: int
    path: Path
    target: Path

    def keep(self) -> None:
        """It is whole and was checked: give it its place."""
        os.fsync(self.fd)
        os.rename(self.path, self.target)

    def start_anew(self) -> None:
        """What is in it is wrong."""
        os.ftruncate(self.fd, 0)


class Blobs:
    """The blobs below one directory. A file under its digest is complete: it got there by rename, after fsync."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, digest: str) -> Path:
        """Where the blob is or would be."""
        return self.directory / Digest.parse(digest).hex

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self.path(digest).exists()

    def put(self, source: bytes | IO[bytes], media_type: str, expected: Descriptor | None) -> Descriptor:
        """Store bytes or a stream; afterwards the digest is readable, whether or not this call wrote it."""
        if isinstance(source, bytes) and self.has(digest := Digest.of(source)) and expected is None:
            return Descriptor(media_type, digest, len(source))
        chunks = [source] if isinstance(source, bytes) else iter(lambda: source.read(_CHUNK), b"")
        return self.put_pieces(chunks, media_type, expected)

    def put_pieces(self, pieces: Iterable[bytes], media_type: str, expected: Descriptor | None = None) -> Descriptor:
        """As `put`, for bytes that are made while they are stored."""
        with self._temporary() as (fd, path):
            digest, size = digest_of(_tee(pieces, fd))
            if expected is not None:
                check(expected, digest, size)
            os.fsync(fd)
            os.rename(path, self.path(digest))
        return Descriptor(media_type, digest, size)

    def open(self, descriptor: Descriptor) -> IO[bytes]:
        """A reader that raises DigestMismatch at its end when the file is not what the descriptor promises."""
        try:
            return verified(open(self.path(descriptor.digest), "rb", buffering=0), descriptor)
        except FileNotFoundError as err:
            raise ImageError(f"blob {descriptor.digest[:19]}…: not in the store", hint="load or pull the image again") from err

    @contextlib.contextmanager
    def partial(self, digest: str, wait: Callable[[Callable[[], bool]], None]) -> Iterator[Partial | None]:
        """The growing file of a blob, ours alone; whatever an earlier writer left is in it, and what we leave stays for the next.
        None when the blob is here, also when another writer ended it while we waited. `wait` tries until it succeeds."""
        path = self.directory / f"{_PARTIAL}{Digest.parse(digest).hex}"
        fd = locked_file(path, wait)
        try:
            yield None if self.has(digest) else Partial(fd, path, self.path(digest))
        finally:
            if self.has(digest) or not os.fstat(fd).st_size:
                path.unlink(missing_ok=True)
            fcntl.flock(fd, fcntl.LOCK_UN)  # also that of duplicates: what reads on must hold nobody up
            os.close(fd)

    def remove(self, digest: str) -> int:
        """Delete the blob if it is here; the bytes freed."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            return 0
        return size

    def digests(self) -> list[Digest]:
        """All blobs here."""
        return [Digest.parse(f"sha256:{name}") for name in os.listdir(self.directory) if not name.startswith(".")]

    def remove_temporary(self) -> None:
        """Delete what killed writers left; only while nobody writes."""
        for name in os.listdir(self.directory):
            if name.startswith((_TEMPORARY, _PARTIAL)):
                (self.directory / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        """A new file; gone afterwards unless it was renamed."""
        path = self.directory / f"{_TEMPORARY}{os.urandom(8).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield fd, path
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)


def _tee(chunks: Iterable[bytes], fd: int) -> Iterator[bytes]:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
        yield chunk
