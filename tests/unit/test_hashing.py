"""SHA-256 is one and the same, whoever computes it."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from sandbox.hashing import sha256_hex


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 16) - 1, 1 << 16, 1 << 20])
def test_small_and_large_are_hashlibs(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert sha256_hex(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_python_without_its_own_uses_openssls(*, is_there: bool) -> None:
    hide = "" if is_there else "sys.modules['_sha256'] = sys.modules['_sha2'] = None\n"
    code = f"import sys\n{hide}from sandbox.hashing import sha256_hex\nprint('hashlib' in sys.modules, sha256_hex(b'abc')[:8])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{not is_there} ba7816bf\n"
