"""A terminal that a test types into and reads from."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios

from tests.support.command_line import CommandLine, read_until


class Terminal:
    """A terminal of ours that a command runs in."""

    def __init__(self, sandbox: CommandLine, *words: str, rows: int = 33, columns: int = 77) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            sandbox.argv(*words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, wanted: bytes) -> bytes:
        return read_until(self.master, wanted)
