"""Attacks that several suites try."""

from __future__ import annotations

OVERWRITE = """#!/proc/self/exe
import os
exe = "/proc/self/exe"
for attack in (lambda: os.chmod(exe, 0o4777), lambda: os.utime(exe, (1, 1)), lambda: os.open(exe, os.O_WRONLY)):
    try:
        attack()
        print("done")
    except OSError as err:
        print(err.strerror)
"""
"""A script by which Linux runs our own interpreter inside a container, and which goes for its file (CVE-2019-5736). Its twin, that it
succeeds elsewhere, is in test_isolation_leaks."""
