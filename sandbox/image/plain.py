"""Layers' bytes as they come: decompressed, hashed, read ahead."""

from __future__ import annotations

import contextlib
import hashlib
import io
import queue
import sys
import threading
from collections.abc import Iterator
from typing import IO, Self

from sandbox.errors import InvalidImage

_CHUNK = 1 << 20
PIECE = 1 << 18
"""Bytes that are decompressed, hashed and written while a processor still has them at hand."""
_AHEAD = 4
_BOMB_FLOOR, _BOMB_RATIO = 1 << 30, 200


def bomb_limit(size: int) -> int:
    """The most bytes that a layer of `size` compressed ones may have: what real layers need, and no decompression bomb."""
    return _BOMB_FLOOR + _BOMB_RATIO * size


@contextlib.contextmanager
def decompressed(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    """The plain bytes of a stream, whichever way it is compressed."""
    buffered = io.BufferedReader(stream, _CHUNK)  # type: ignore[type-var]
    try:
        magic = buffered.peek(6)[:6]
        opener = next((opener for prefix, opener in _FORMATS if magic.startswith(prefix)), None)
        if opener is None:
            yield buffered
        else:
            with opener(buffered) as plain:
                yield plain
    except _damage() as err:
        raise _damaged(err) from err
    finally:
        if not buffered.closed:
            buffered.detach()  # the stream is its owner's to close


class _Plain(io.RawIOBase):
    """A decompressed stream that owns the one below it."""

    def __init__(self, below: IO[bytes]) -> None:
        self._opened = contextlib.ExitStack()
        self._opened.callback(below.close)
        self._plain = self._opened.enter_context(decompressed(below))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        data = self._plain.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()


def opened_plain(stream: IO[bytes]) -> IO[bytes]:
    """As `decompressed`, to be closed by whoever reads it; closes `stream` too."""
    return io.BufferedReader(_Plain(stream), _CHUNK)


def _gzip(stream: IO[bytes]) -> IO[bytes]:
    from isal import igzip  # 15 ms, wanted only here

    opened: IO[bytes] = igzip.IGzipFile(fileobj=stream, mode="rb")  # type: ignore[no-untyped-call, assignment]  # isal has no types
    return opened


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
    except ImportError:
        from backports import zstd
    opened: IO[bytes] = zstd.ZstdFile(stream, "rb")
    return opened


def _bzip2(stream: IO[bytes]) -> IO[bytes]:
    import bz2

    return bz2.BZ2File(stream, "rb")


def _xz(stream: IO[bytes]) -> IO[bytes]:
    import lzma

    return lzma.LZMAFile(stream, "rb")


_FORMATS = ((b"\x1f\x8b", _gzip), (b"\x28\xb5\x2f\xfd", _zstd), (b"BZh", _bzip2), (b"\xfd7zXZ\x00", _xz))


def _damage() -> tuple[type[BaseException], ...]:
    """What the decompressors in use raise for bytes they cannot read."""
    kinds = [getattr(sys.modules[module], name) for module, name in _DAMAGE if module in sys.modules]
    return (EOFError, *kinds)


def _damaged(err: BaseException) -> InvalidImage:
    return InvalidImage(f"damaged compressed stream: {err}")


_DAMAGE = (
    ("isal.isal_zlib", "error"),
    ("isal.igzip", "BadGzipFile"),
    ("backports.zstd", "ZstdError"),
    ("compression.zstd", "ZstdError"),
    ("lzma", "LZMAError"),
)


class ReadAhead:
    """A plain stream read by a thread of its own, a megabyte ahead, its digest and size known at the end: what it costs to make its
    bytes (download, decompress, hash) is paid beside what is done with them. A context manager: leaving it ends the thread, at the
    latest when its next bytes come. `limit`: the most bytes it may have; `what`: how the error calls it."""

    def __init__(self, stream: IO[bytes], limit: int | None = None, what: str = "layer") -> None:
        self._stream = stream
        self._limit, self._what = limit, what
        self._sha256 = hashlib.sha256()
        self.size = 0
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._is_given_up = threading.Event()
        self._rest = b""
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="read ahead", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_given_up.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):  # it may wait for room
                self._pieces.get(timeout=0.01)

    def _run(self) -> None:
        try:
            while not self._is_given_up.is_set():
                piece = self._stream.read(PIECE)
                self._sha256.update(piece)
                self.size += len(piece)
                if self._limit is not None and self.size > self._limit:
                    most = self._limit >> 20
                    raise InvalidImage(f"{self._what}: more than {most} MiB unpacked, which so few compressed bytes cannot mean")
                self._pieces.put(piece)
                if not piece:
                    return
        except _damage() as err:  # here, for a tar that ends too soon raises EOFError as well
            self._pieces.put(_damaged(err))
        except BaseException as err:  # noqa: BLE001  # the reader's to raise
            self._pieces.put(err)

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end. Raises what reading them raised."""
        if not self._rest and not self._is_over:
            piece = self._pieces.get()
            if isinstance(piece, BaseException):
                self._is_over = True
                raise piece
            self._rest, self._is_over = piece, not piece
        data, self._rest = (self._rest, b"") if len(self._rest) <= size else (self._rest[:size], self._rest[size:])
        return data

    def digest(self) -> str:
        """Of the whole, which is read to its end for that: what follows a tar's end mark counts, too. Raises what reading raised."""
        while self.read(PIECE):
            continue
        return f"sha256:{self._sha256.hexdigest()}"
