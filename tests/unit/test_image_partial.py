"""A blob that two want at once: one brings it, the other waits for that, and for no more."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.image.blobs import Blobs
from sandbox.oci import Digest

DATA = b"a layer"
DIGEST = Digest.of(DATA)


class Patience:
    """Tries again and again; `tried`: it has been refused once."""

    def __init__(self) -> None:
        self.tried = threading.Event()

    def __call__(self, attempt: Callable[[], bool]) -> None:
        for _ in range(500):
            if attempt():
                return
            self.tried.set()
            threading.Event().wait(0.01)
        raise TimeoutError


@pytest.mark.parametrize("is_kept", [True, False])
def test_who_reads_on_holds_nobody_up(tmp_path: Path, *, is_kept: bool) -> None:
    """Its unpacker has the file open still, under the same lock, and may wait for what the other brings."""
    blobs, patience = Blobs(tmp_path), Patience()

    def second() -> str:
        with blobs.partial(DIGEST, patience) as partial:
            return "is here" if partial is None else f"has {os.fstat(partial.fd).st_size}"

    with ThreadPoolExecutor(1) as pool:
        with blobs.partial(DIGEST, Patience()) as partial:
            assert partial is not None
            os.write(partial.fd, DATA)
            reader = os.dup(partial.fd)
            waiting = pool.submit(second)
            assert patience.tried.wait(30)
            if is_kept:
                partial.keep()
        try:
            assert waiting.result() == ("is here" if is_kept else f"has {len(DATA)}")
        finally:
            os.close(reader)
