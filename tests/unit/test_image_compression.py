"""Compressed layers are the same bytes however the tar is read and however many processors there are, and others read them."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import threading

import pytest

from sandbox.errors import DigestMismatch
from sandbox.image import compression
from sandbox.image.blobs import verified
from sandbox.image.compression import Compression, compressed, compression_of
from sandbox.oci import LAYER_GZIP, LAYER_TAR, LAYER_ZSTD, Descriptor, Digest
from tests.support.host import requires

DATA = b"".join(b"line %d of a text that repeats\n" % (number % 977) for number in range(150_000))


class Trickle(io.RawIOBase):
    """Gives a few bytes a read."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        return self._data.readinto(memoryview(buffer)[:1000])


@pytest.mark.parametrize("kind", ["gzip", "zstd", "none"])
def test_the_bytes_do_not_depend_on_reads_and_processors(kind: Compression, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b"".join(compressed(io.BytesIO(DATA), kind))
    assert b"".join(compressed(io.BufferedReader(Trickle(DATA)), kind)) == whole
    for count in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid, count=count: set(range(count)))
        assert b"".join(compressed(io.BytesIO(DATA), kind)) == whole


def test_gzip_is_read_by_others_and_says_no_time() -> None:
    made = b"".join(compressed(io.BytesIO(DATA), "gzip"))
    assert gzip.decompress(made) == DATA
    assert made[4:8] == bytes(4)
    assert len(made) < len(DATA) // 4


@requires("tool:zstd")
def test_zstd_is_read_by_others() -> None:
    made = b"".join(compressed(io.BytesIO(DATA), "zstd"))
    assert subprocess.run(["zstd", "-dc"], input=made, capture_output=True, check=True).stdout == DATA


@requires("tool:zstd")
@pytest.mark.parametrize(("kind", "reader"), [("gzip", "gzip"), ("zstd", "zstd"), ("none", "cat")])
def test_nothing_compresses_to_a_whole_stream(kind: Compression, reader: str) -> None:
    made = b"".join(compressed(io.BytesIO(b""), kind))
    argv = [reader] if reader == "cat" else [reader, "-dc"]
    done = subprocess.run(argv, input=made, capture_output=True, check=False)
    assert (done.returncode, done.stdout, bool(made)) == (0, b"", kind != "none")


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_tar_that_is_not_the_promised_one_is_an_error_and_leaves_no_thread(kind: Compression) -> None:
    before = threading.active_count()
    wrong = verified(io.BytesIO(DATA), Descriptor(LAYER_TAR, Digest.of(b"other"), len(DATA)))
    with pytest.raises(DigestMismatch):
        b"".join(compressed(wrong, kind))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (LAYER_TAR, "none"),
        (LAYER_GZIP, "gzip"),
        (LAYER_ZSTD, "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar", "none"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
    ],
)
def test_media_types_say_how_a_layer_is_compressed(media_type: str, expected: str) -> None:
    assert compression_of(media_type) == expected
    assert set(compression.MEDIA_TYPES) == {"none", "gzip", "zstd"}
