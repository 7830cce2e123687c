"""SHA-256 of small things by Python's own code: hashlib loads OpenSSL first, for 3 ms."""

from __future__ import annotations

import sys

try:
    if sys.version_info >= (3, 12):
        from _sha2 import sha256 as _own_sha256
    else:
        from _sha256 import sha256 as _own_sha256  # type: ignore[import-not-found]  # typeshed has no private modules
except ImportError:  # a Python that was built with OpenSSL's alone, as Fedora's
    from hashlib import sha256 as _own_sha256

_LARGE = 1 << 16


def sha256_hex(data: bytes) -> str:
    """64 hexadecimal digits."""
    if len(data) < _LARGE:
        digits: str = _own_sha256(data).hexdigest()
        return digits
    import hashlib  # several times faster, once it is there

    return hashlib.sha256(data).hexdigest()
