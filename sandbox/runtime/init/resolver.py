"""A container's name server (RFC 1035): the containers of its networks by name, everything else from the host's servers.

Init opens the sockets inside the container, on 127.0.0.11 as docker's; the supervisor answers from outside. Who is in a network is
looked up in the files of its leases at every question, so an answer is never older than the question. With an allow-list it answers
for the names in that alone, and lets their addresses through before it answers.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time

from sandbox.runtime.init import dnsmessage as dns
from sandbox.runtime.init import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from sandbox.runtime.init.allowlist import AllowList

    Reply = Callable[[bytes], object]

ADDRESS = "127.0.0.11"
PORT = 53
_MOST_WAITING, _MOST_STREAMS = 256, 32
_PATIENCE = 10.0
_LARGEST = 65535 + 2
_NEW = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


class _PassedOn:
    """A question at another server: by which socket, how its answer goes back, since when."""

    def __init__(self, question: dns.Question, reply: Reply, upstream: socket.socket, *, is_stream: bool) -> None:
        self.question, self.reply, self.upstream = question, reply, upstream
        self.since = time.monotonic()
        self.unsent = len(question.data).to_bytes(2, "big") + question.data if is_stream else b""
        self.is_stream = is_stream
        self.received = b""

    def receive(self) -> bytes | None:
        """The answer; None when it is not all here. OSError."""
        if not self.is_stream:
            return self.upstream.recv(65536)
        if self.unsent:
            self.unsent = self.unsent[self.upstream.send(self.unsent) :]
            return None
        piece = self.upstream.recv(65536)
        if not piece:
            raise ConnectionResetError
        self.received += piece
        whole = _framed(self.received)
        return whole[0] if whole else None


class Resolver:
    """Serves one container. `ends`: the sockets inside, for datagrams and for connections. Of its `network`: `places` are where it is
    at this moment, `containers` has the directories that tell who lives, `servers` are asked what nobody here can answer, unless no
    network of its leads out."""

    def __init__(self, ends: tuple[socket.socket, socket.socket], network: Mapping[str, Any], allow: AllowList | None) -> None:
        self._datagrams, self._connections = ends
        self._network = network
        self._allow = allow
        self._waiting: dict[int, _PassedOn] = {}
        self._streams: dict[int, tuple[socket.socket, bytes]] = {}

    def interests(self) -> Iterator[tuple[int, int]]:
        """What to wait on, and for which poll(2) events."""
        yield self._datagrams.fileno(), select.POLLIN
        yield self._connections.fileno(), select.POLLIN
        for fd in self._streams:
            yield fd, select.POLLIN
        for fd, each in self._waiting.items():
            yield fd, select.POLLOUT if each.unsent else select.POLLIN

    def serve(self, fd: int) -> None:
        """The descriptor is ready."""
        if fd == self._datagrams.fileno():
            self._take_datagram()
        elif fd == self._connections.fileno():
            self._accept()
        elif fd in self._streams:
            self._read_stream(fd)
        else:
            self._pass_back(fd)

    def close(self) -> None:
        """Its container has ended."""
        self._datagrams.close()
        self._connections.close()
        for each in self._waiting.values():
            each.upstream.close()
        for end, _ in self._streams.values():
            end.close()

    # who asks

    def _take_datagram(self) -> None:
        try:
            data, sender = self._datagrams.recvfrom(4096)
        except OSError:
            return

        def reply(answer: bytes) -> None:
            try:
                self._datagrams.sendto(answer, sender)
            except OSError:
                return  # nobody waits for it any more

        self._ask(data, reply, is_stream=False)

    def _accept(self) -> None:
        try:
            end, _ = self._connections.accept()
        except OSError:
            return
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST)  # an answer goes out at once or not at all
        if len(self._streams) >= _MOST_STREAMS:
            self._drop_stream(next(iter(self._streams)))
        self._streams[end.fileno()] = (end, b"")

    def _read_stream(self, fd: int) -> None:
        end, before = self._streams[fd]
        try:
            piece = end.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        data = before + piece
        if not piece or len(data) > 2 * _LARGEST:
            self._drop_stream(fd)
            return
        while whole := _framed(data):
            question, data = whole
            self._ask(question, lambda answer: self._reply_on(end, answer), is_stream=True)
        if fd in self._streams:
            self._streams[fd] = (end, data)

    def _reply_on(self, end: socket.socket, answer: bytes) -> None:
        fd = end.fileno()
        if fd < 0:
            return  # it was given up
        try:
            is_whole = end.send(len(answer).to_bytes(2, "big") + answer, socket.MSG_NOSIGNAL) == len(answer) + 2
        except OSError:
            is_whole = False
        if not is_whole:
            self._drop_stream(fd)

    def _drop_stream(self, fd: int) -> None:
        if fd in self._streams:
            self._streams.pop(fd)[0].close()

    # answers

    def _ask(self, data: bytes, reply: Reply, *, is_stream: bool) -> None:
        question = dns.read_question(data)
        if question is None:
            return  # no question: no answer
        answer = self._own_answer(question)
        if answer is None and self._allow is not None:
            answer = self._limited(question)
        if answer is not None:
            reply(answer)
        else:
            self._pass_on(question, reply, is_stream=is_stream)

    def _own_answer(self, question: dns.Question) -> bytes | None:
        """For a name of one of its networks, also when it has no such record; None for all others."""
        if question.kind == dns.PTR and (address := dns.address_of_arpa(question.name)):
            names = [lease["names"][0] for found, lease in self._members() if address in (found, lease.get("address6"))]
            return dns.answer(question, [(dns.PTR, dns.encode_name(each)) for each in names]) if names else None
        members = [(address, lease) for address, lease in self._members() if question.name in (each.lower() for each in lease["names"])]
        if not members:
            return None
        texts: dict[int, list[str | None]] = {
            dns.A: [address for address, _ in members],
            dns.AAAA: [lease.get("address6") for _, lease in members],
        }
        records = [socket.inet_pton(dns.FAMILIES[question.kind], each) for each in texts.get(question.kind, ()) if each]
        if self._allow is not None and any(lease["container"] != self._network["container"] for _, lease in members):
            return self._let_through(question, records, ttl=1)
        return dns.answer(question, [(question.kind, each) for each in records])

    def _members(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Of all its networks: address and lease."""
        for place in [os.path.dirname(each["lease"]) for each in self._network["places"]]:
            for address in os.listdir(place) if os.path.isdir(place) else ():
                if not address[0].isdigit():
                    continue
                try:
                    with open(f"{place}/{address}", encoding="utf-8") as file:
                        lease = json.load(file)
                except (FileNotFoundError, ValueError):
                    continue  # given back just now
                if files.is_locked(f"{self._network['containers']}/{lease['container']}"):
                    yield address, lease

    def _limited(self, question: dns.Question) -> bytes | None:
        """What is answered without asking elsewhere, because of the allow-list: a name that is not in it, a record that is no address."""
        assert self._allow is not None
        if not self._allow.has(question.name):
            if question.kind in dns.FAMILIES:
                self._allow.deny(question.name)
            return dns.answer(question, code=dns.REFUSED)
        return None if question.kind in dns.FAMILIES else dns.answer(question)

    def _let_through(self, question: dns.Question, records: Sequence[bytes], *, ttl: int) -> bytes:
        """An answer whose addresses can be reached by the time it comes."""
        assert self._allow is not None
        if not self._allow.has(question.name):
            self._allow.deny(question.name)
            return dns.answer(question, code=dns.REFUSED)
        try:
            self._allow.admit(question.name, records, ttl)
        except OSError:  # somebody took the rules away: what is not let through is not told
            return dns.answer(question, code=dns.FAILED)
        return dns.answer(question, [(question.kind, each) for each in records], ttl=ttl)

    # elsewhere

    def _pass_on(self, question: dns.Question, reply: Reply, *, is_stream: bool) -> None:
        self._forget_late()
        for server in self._network["servers"] if not all(each["internal"] for each in self._network["places"]) else ():
            kind = socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM
            upstream = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind | _NEW)
            try:
                upstream.connect((server, PORT))  # a port of its own for each question: an answer cannot be guessed
                if not is_stream:
                    upstream.send(question.data)
            except BlockingIOError:
                pass  # a connection, on its way
            except OSError:
                upstream.close()
                continue
            self._waiting[upstream.fileno()] = _PassedOn(question, reply, upstream, is_stream=is_stream)
            return
        reply(dns.answer(question, code=dns.FAILED))

    def _pass_back(self, fd: int) -> None:
        waiting = self._waiting.get(fd)
        if waiting is None:  # it was forgotten a moment ago, for a question of the same round
            return
        try:
            data = waiting.receive()
        except BlockingIOError:
            return
        except OSError:  # refused: who asked asks again, unless by a connection
            data = dns.answer(waiting.question, code=dns.FAILED) if waiting.is_stream else b""
        if data is None:
            return
        self._waiting.pop(fd).upstream.close()
        if len(data) >= 2 and int.from_bytes(data[:2], "big") == waiting.question.number:
            waiting.reply(data if self._allow is None else self._sifted(waiting, data))

    def _sifted(self, waiting: _PassedOn, data: bytes) -> bytes:
        """Of another server's answer no more than the addresses of the name; what is truncated is left to be asked again."""
        assert self._allow is not None
        question = waiting.question
        if dns.is_truncated(data) and not waiting.is_stream:
            return dns.truncated(question)
        try:
            code, found, ttl = dns.addresses(data, question)
        except ValueError:
            return dns.answer(question, code=dns.FAILED)
        usable = self._allow.usable(found)
        for address in found:
            if address not in usable:
                text = socket.inet_ntop(dns.FAMILIES[question.kind], address)
                self._allow.deny(f"{question.name} at {text}")
        if found and not usable:
            return dns.answer(question, code=dns.REFUSED)
        return self._let_through(question, usable, ttl=ttl) if usable else dns.answer(question, code=code, ttl=ttl)

    def _forget_late(self) -> None:
        now = time.monotonic()
        late = [fd for fd, each in self._waiting.items() if now - each.since > _PATIENCE or len(self._waiting) >= _MOST_WAITING]
        for fd in late:
            self._waiting.pop(fd).upstream.close()


def _framed(data: bytes) -> tuple[bytes, bytes] | None:
    """The first message of a stream (RFC 1035, 4.2.2) and what comes after it; None when it is not all here."""
    size = int.from_bytes(data[:2], "big")
    return (data[2 : 2 + size], data[2 + size :]) if len(data) >= 2 + size and len(data) >= 2 else None
