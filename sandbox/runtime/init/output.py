"""What a program's 0, 1 and 2 are: its client's own descriptors, or pipes or a terminal of ours that its log and its clients share."""

from __future__ import annotations

import fcntl
import functools
import os
import select
import struct
import termios

from sandbox.runtime.init import logfile, streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init.clients import Client

_STUCK_CLIENT = 1.0
"""Seconds a client may leave the last output unread before it is dropped."""
_END_OF_FILE = b"\x04"
"""As a terminal says it."""


class Output:
    """The streams of one container while it runs. `stdio`: its starter's descriptors, until they are wired."""

    def __init__(self, plan: Mapping[str, Any], stdio: Sequence[int]) -> None:
        self._plan = plan
        self.stdio = list(stdio)
        self.pumps: list[streams.Pump] = []
        self._feed: streams.Feed | None = None
        self._typists: list[Client] = []
        self._terminal = -1
        self._log: logfile.Log | None = None

    # wiring

    def wire(self) -> list[int]:
        """What init gets as 0, 1, 2: its starter's own descriptors, or pipes of ours when others may want the output, too."""
        if self._plan["log"]:
            self._log = logfile.Log(**self._plan["log"])
        if self._plan["process"]["tty"]:
            return []  # init opens the terminal inside
        if not is_shared(self._plan):
            return self.stdio
        inside = [self._wire_input()]
        for name in ("stdout", "stderr"):
            source, write_end = os.pipe()
            inside.append(write_end)
            self.pumps.append(streams.Pump(name, source, [], self._log))
        return [*inside, *self.stdio[3:]]

    def _wire_input(self) -> int:
        """Without a client there is nobody to type yet, but there may be: a pipe stays open for those."""
        if not (self._plan["detach"] and self._plan["interactive"]):
            return self.stdio[0]
        read_end, write_end = os.pipe()
        self._feed = streams.Feed(write_end)
        return read_end

    def wire_terminal(self, master: int) -> None:
        """The program has a terminal: everything it prints comes from its master, and what is typed goes there."""
        self._terminal = master
        self._feed = streams.Feed(master)
        self.pumps = [streams.Pump("stdout", master, [], self._log)]

    # who takes part

    def admit(self, client: Client) -> bool:
        """From now on it gets what is printed, and types, as far as it gave descriptors for that; whether it can type."""
        for pump in self.pumps:
            sink = client.stdio[1 if pump.stream == "stdout" else 2]
            if sink >= 0:
                pump.sinks.append(streams.Sink(sink))
        if client.stdio[0] < 0 or self._feed is None or not self._plan["interactive"]:
            return False
        self._typists.append(client)
        return True

    def dismiss(self, client: Client) -> None:
        """It takes part no more."""
        self._typists = [typist for typist in self._typists if typist is not client]
        for pump in self.pumps:
            pump.forget(set(client.stdio))

    # while it runs

    def interests(self, detach: Callable[[Client], object]) -> Iterator[streams.Interest]:
        """What to wait for now; `detach` gets who typed the keys for it."""
        if self._feed is not None:
            yield from self._feed.interests()
            if not self._feed.is_full:
                for client in self._typists:
                    yield client.stdio[0], select.POLLIN, functools.partial(self._take_keys, client, detach)
        for pump in self.pumps:
            yield from pump.interests()

    def _take_keys(self, client: Client, detach: Callable[[Client], object]) -> None:
        if client not in self._typists or self._feed is None:  # gone in this very round
            return
        try:
            data = os.read(client.stdio[0], 4096)
        except OSError:  # EIO: its terminal is gone
            data = b""
        keys, is_detached = client.keys.take(data)
        self._feed.put(keys if data or self._terminal < 0 or not client.is_starter else _END_OF_FILE)
        if is_detached:
            detach(client)
        elif not data:
            self._typists.remove(client)
            client.close_keyboard()

    def resize(self, rows: int, columns: int) -> None:
        """The size of the program's terminal, if it has one."""
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def printed(self) -> int:
        """Bytes so far, of what passes through here."""
        return sum(pump.printed for pump in self.pumps)

    # the end

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
        if self._feed is not None and self._terminal < 0:
            os.close(self._feed.fd)


def is_shared(plan: Mapping[str, Any]) -> bool:
    """Whether the output passes through us: it is logged, counted, or may become nobody's. Else the program writes to its starter's
    descriptors themselves."""
    return any((plan["log"], plan.get("output_limit"), plan["process"]["tty"], plan["detach"], plan.get("may_leave")))


def _wait_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(_STUCK_CLIENT * 1000))
