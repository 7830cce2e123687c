"""What a program's 0, 1 and 2 are: its client's own descriptors, or pipes or a terminal of ours that its log and its client get."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import termios

from sandbox.runtime.init import logfile, streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

_STUCK_CLIENT = 1.0
"""Seconds a client may leave the last output unread before it is dropped."""


class Output:
    """The streams of one container while it runs. `stdio`: the client's, -1 for what was let go."""

    def __init__(self, plan: Mapping[str, Any], stdio: Sequence[int]) -> None:
        self._plan = plan
        self.stdio = list(stdio)
        self.pumps: list[streams.Pump] = []
        self.terminal = -1
        self._log: logfile.Log | None = None

    def wire(self) -> list[int]:
        """What init gets as 0, 1, 2: the client's own descriptors, or pipes of ours when the output is logged."""
        if self._plan["log"]:
            self._log = logfile.Log(**self._plan["log"])
        if self._plan["process"]["tty"]:
            return []  # init opens the terminal inside
        if not self._log and not self._plan.get("output_limit"):
            return self.stdio
        inside = [self.stdio[0]]
        for name, sink in zip(("stdout", "stderr"), self.stdio[1:3], strict=True):
            source, write_end = os.pipe()
            inside.append(write_end)
            self.pumps.append(streams.Pump(name, source, [] if self._plan["detach"] else [sink], self._log))
        return [*inside, *self.stdio[3:]]

    def let_go(self, given: set[int]) -> None:
        """What init has now, and for a detached container all that is the client's."""
        if self._plan["detach"]:
            given |= set(self.stdio)
        for fd in given:
            os.close(fd)
        self.stdio = [-1 if fd in given else fd for fd in self.stdio]

    def wire_terminal(self, master: int) -> None:
        """The program has a terminal: everything it prints comes from its master."""
        self.terminal = master
        sinks = [] if self._plan["detach"] else [self.stdio[1]]
        self.pumps = [streams.Pump("stdout", master, sinks, self._log)]

    def interests(self) -> Iterator[streams.Interest]:
        """What to wait for now."""
        if self.terminal >= 0 and self._plan["interactive"] and self.stdio[0] >= 0:
            yield self.stdio[0], select.POLLIN, self._serve_keyboard
        for pump in self.pumps:
            yield from pump.interests()

    def resize(self, rows: int, columns: int) -> None:
        """The size of the program's terminal, if it has one."""
        if self.terminal >= 0:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def printed(self) -> int:
        """Bytes so far, of what passes through here."""
        return sum(pump.printed for pump in self.pumps)

    def drain(self) -> None:
        """Everything that is left, after the last writer ended."""
        for pump in self.pumps:
            pump.drain(_wait_writable)
        if self._log:
            self._log.close()

    def close(self) -> None:
        """It is read to its end."""
        for pump in self.pumps:
            pump.close()

    def _serve_keyboard(self) -> None:
        data = os.read(self.stdio[0], 4096)
        if data:
            os.write(self.terminal, data)
        else:
            os.write(self.terminal, b"\x04")  # end of file, as a terminal says it
            os.close(self.stdio[0])
            self.stdio[0] = -1


def _wait_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(_STUCK_CLIENT * 1000))
