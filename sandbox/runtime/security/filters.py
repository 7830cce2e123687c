"""Compiled seccomp filters, kept below ROOT: one is compiled once for each profile, set of capabilities, processor and Linux version."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from sandbox.hashing import sha256_hex

_FORMAT = b"1"
"""Part of every cache key: count up when the compiler's output changes."""


def default_profile() -> bytes:
    """docker's default policy."""
    return Path(__file__).with_name("default.json").read_bytes()


class Filters:
    """Compiled filters below `directory`, one file a combination; a file that is there is whole."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._used: dict[tuple[bytes, tuple[str, ...]], bytes] = {}

    @cached_property
    def default_profile(self) -> bytes:
        """docker's default policy, read once."""
        return default_profile()

    def filter_for(self, profile: bytes, capabilities: Sequence[str]) -> bytes:
        """The filter for this host; compiled when it is asked for the first time. Raises as `seccomp.compiled`."""
        key = (profile, tuple(capabilities))
        if key not in self._used:
            self._used[key] = self._load(profile, capabilities)
        return self._used[key]

    def _load(self, profile: bytes, capabilities: Sequence[str]) -> bytes:
        host = os.uname()
        parts = (_FORMAT, profile, " ".join(sorted(capabilities)).encode(), host.machine.encode(), host.release.encode())
        path = self._directory / (sha256_hex(b"\0".join(parts)) + ".bpf")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            from sandbox.runtime.security import seccomp  # rarely: the first time

            made = seccomp.compiled(profile, capabilities, host.machine, host.release)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        temporary.write_bytes(made)
        temporary.rename(path)
        return made
