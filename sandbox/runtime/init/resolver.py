"""A container's name server (RFC 1035): the containers of its network by name, everything else from the host's servers.

Init opens the socket inside the container, on 127.0.0.11 as docker's; the supervisor answers it from outside. Who is in the
network is looked up in the files of its leases at every question, so an answer is never older than the question.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time

from sandbox.runtime.init import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

ADDRESS = "127.0.0.11"
PORT = 53
_A, _PTR, _AAAA, _IN = 1, 12, 28, 1
_TTL = 1
"""Seconds a name may be remembered: the next container of it has another address."""
_RESPONSE, _RECURSION = 0x8000, 0x0080
_FAILED, _NO_NAME = 2, 3
_MOST_WAITING = 256
_PATIENCE = 10.0


class Resolver:
    """Serves one container. `end`: the socket inside; `upstream`: what questions nobody here can answer are passed on to."""

    def __init__(self, end: socket.socket, network: Mapping[str, Any]) -> None:
        self._end = end
        self._place = os.path.dirname(network["lease"])
        self._containers = network["containers"]
        self._servers: Sequence[str] = network["servers"]
        self._waiting: dict[int, tuple[int, Any, float, socket.socket]] = {}

    def fds(self) -> Iterator[int]:
        """What to wait on."""
        yield self._end.fileno()
        yield from {each[3].fileno() for each in self._waiting.values()}

    def serve(self, fd: int) -> None:
        """The descriptor can be read."""
        if fd == self._end.fileno():
            self._ask()
        else:
            self._pass_back(fd)

    def close(self) -> None:
        """Its container has ended."""
        self._end.close()
        for _, _, _, end in self._waiting.values():
            end.close()

    def _ask(self) -> None:
        try:
            data, sender = self._end.recvfrom(4096)
        except OSError:
            return
        question = _question(data)
        if question is None:
            return  # no question: no answer
        name, kind, end_of_question = question
        answer = self._own_answer(data, name, kind, end_of_question)
        if answer is not None:
            self._reply(answer, sender)
        else:
            self._pass_on(data, sender, end_of_question)

    def _own_answer(self, data: bytes, name: str, kind: int, end: int) -> bytes | None:
        """For a name of this network, also when it has no such record; None for all others."""
        if kind == _PTR and name.endswith(".in-addr.arpa"):
            address = ".".join(reversed(name.removesuffix(".in-addr.arpa").split(".")))
            names = [names[0] for found, names in self._members() if found == address]
            return _answered(data, end, [(_PTR, _encoded(each)) for each in names]) if names else None
        addresses = [address for address, names in self._members() if name in (each.lower() for each in names)]
        if not addresses:
            return None
        return _answered(data, end, [(_A, socket.inet_aton(each)) for each in addresses] if kind == _A else [])

    def _members(self) -> Iterator[tuple[str, list[str]]]:
        for address in os.listdir(self._place):
            if not address[0].isdigit():
                continue
            try:
                with open(f"{self._place}/{address}", encoding="utf-8") as file:
                    lease = json.load(file)
            except (FileNotFoundError, ValueError):
                continue  # given back just now
            if files.is_locked(f"{self._containers}/{lease['container']}"):
                yield address, lease["names"]

    def _pass_on(self, data: bytes, sender: Any, end_of_question: int) -> None:
        self._forget_late()
        for server in self._servers:
            upstream = socket.socket(
                socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            )
            try:
                upstream.connect((server, PORT))  # a port of its own for each question: an answer cannot be guessed
                upstream.send(data)
            except OSError:
                upstream.close()
                continue
            self._waiting[upstream.fileno()] = (int.from_bytes(data[:2], "big"), sender, time.monotonic(), upstream)
            return
        self._reply(_answered(data, end_of_question, [], code=_FAILED), sender)

    def _pass_back(self, fd: int) -> None:
        waiting = self._waiting.pop(fd, None)
        if waiting is None:  # it was forgotten a moment ago, for a question of the same round
            return
        number, sender, _, upstream = waiting
        try:
            data = upstream.recv(65536)
            if int.from_bytes(data[:2], "big") == number:
                self._reply(data, sender)
        except OSError:
            pass  # refused: who asked asks again
        finally:
            upstream.close()

    def _forget_late(self) -> None:
        now = time.monotonic()
        late = [fd for fd, each in self._waiting.items() if now - each[2] > _PATIENCE or len(self._waiting) >= _MOST_WAITING]
        for fd in late:
            self._waiting.pop(fd)[3].close()

    def _reply(self, data: bytes, sender: Any) -> None:
        try:
            self._end.sendto(data, sender)
        except OSError:
            return  # nobody waits for it any more


def _question(data: bytes) -> tuple[str, int, int] | None:
    """The name in small letters, the kind of record, and where the question ends; None when it is none of ours to answer."""
    if len(data) < 17:
        return None
    _, flags, count, *_ = struct.unpack_from(">HHHHHH", data)
    if flags & (_RESPONSE | 0x7800) or count != 1:
        return None
    labels, at = [], 12
    while at < len(data) and (size := data[at]):
        if size > 63 or at + 1 + size > len(data):
            return None
        labels.append(data[at + 1 : at + 1 + size].decode("ascii", "replace").lower())
        at += 1 + size
    if at + 5 > len(data):
        return None
    kind, family = struct.unpack_from(">HH", data, at + 1)
    return (".".join(labels), kind, at + 5) if family == _IN else None


def _answered(data: bytes, end: int, records: Sequence[tuple[int, bytes]], *, code: int = 0) -> bytes:
    """The answer to the question in `data`."""
    number, flags = struct.unpack_from(">HH", data)
    head = struct.pack(">HHHHHH", number, _RESPONSE | flags & 0x0100 | _RECURSION | code, 1, len(records), 0, 0)
    rows = (struct.pack(">HHHIH", 0xC00C, kind, _IN, _TTL, len(value)) + value for kind, value in records)
    return head + data[12:end] + b"".join(rows)


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"
