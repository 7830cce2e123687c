"""The name server's own answers, packet by packet, and that no packet upsets it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.runtime.init import dnsmessage, resolver


class Asked:
    """A resolver between two sockets of ours: `ask` sends, `serve` lets it answer."""

    def __init__(self, place: Path, servers: list[str]) -> None:
        inside, connections = socket.socket(type=socket.SOCK_DGRAM), socket.create_server(("127.0.0.1", 0))
        inside.bind(("127.0.0.1", 0))
        self.client = socket.socket(type=socket.SOCK_DGRAM)
        self.client.connect(inside.getsockname())
        for end in (inside, connections, self.client):
            end.setblocking(False)
        self.servers = servers
        own = {"lease": f"{place}/10.0.0.9", "internal": False}
        network = {"containers": str(place), "container": "own", "servers": servers, "places": [own]}
        self.resolver = resolver.Resolver((inside, connections), network, None)
        self._inside, self.ends = inside, {inside.fileno(), connections.fileno()}

    def ask(self, packet: bytes) -> bytes | None:
        self.client.send(packet)
        self.resolver.serve(self._inside.fileno())
        try:
            return self.client.recv(4096)
        except BlockingIOError:
            return None


def question(name: str, kind: int = 1, *, number: int = 77, count: int = 1) -> bytes:
    labels = b"".join(bytes([len(each)]) + each.encode() for each in name.split("."))
    return struct.pack(">HHHHHH", number, 0x0100, count, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    members = {"10.0.0.2": ("a", ["web", "www", "c0ffee"]), "10.0.0.3": ("b", ["web"]), "10.0.0.4": ("dead", ["gone"])}
    for address, (container, names) in members.items():
        (tmp_path / address).write_text(json.dumps({"container": container, "names": names, "address6": ""}))
    (tmp_path / "10.0.0.6").write_text(json.dumps({"container": "c", "names": ["both"], "address6": "fd00::6"}))
    (tmp_path / "10.0.0.5").write_text('{"half')
    (tmp_path / "network.json").write_text("{}")
    monkeypatch.setattr(resolver.files, "is_locked", lambda directory: not directory.endswith("/dead"))
    made = Asked(tmp_path, [])
    yield made
    made.resolver.close()
    made.client.close()


def parts(answer: bytes | None) -> tuple[int, int, int]:
    """Number, response code, records."""
    assert answer is not None
    number, flags, _, records, _, _ = struct.unpack_from(">HHHHHH", answer)
    assert flags & 0x8000
    return number, flags & 15, records


def test_a_name_has_the_addresses_of_all_that_bear_it(asked: Asked) -> None:
    answer = asked.ask(question("web"))
    assert parts(answer) == (77, 0, 2)
    assert answer is not None
    assert {answer[-4:], answer[-20:-16]} == {socket.inet_aton("10.0.0.2"), socket.inet_aton("10.0.0.3")}
    assert parts(asked.ask(question("WwW"))) == (77, 0, 1)


def test_a_name_without_such_a_record_is_no_error(asked: Asked) -> None:
    assert parts(asked.ask(question("web", 28))) == (77, 0, 0)


def test_who_has_ended_has_no_name(asked: Asked) -> None:
    assert parts(asked.ask(question("gone"))) == (77, 2, 0)  # asked elsewhere, and there is nobody to ask


def test_an_address_has_a_name(asked: Asked) -> None:
    answer = asked.ask(question("2.0.0.10.in-addr.arpa", 12))
    assert parts(answer) == (77, 0, 1)
    assert answer is not None
    assert answer.endswith(b"\3web\0")
    reverse = ".".join(reversed(socket.inet_pton(socket.AF_INET6, "fd00::6").hex())) + ".ip6.arpa"
    answer = asked.ask(question(reverse, 12))
    assert answer is not None
    assert answer.endswith(b"\4both\0")


def test_an_ipv6_address_is_answered_where_there_is_one(asked: Asked) -> None:
    answer = asked.ask(question("both", 28))
    assert answer is not None
    assert answer.endswith(socket.inet_pton(socket.AF_INET6, "fd00::6"))


@pytest.mark.parametrize("name", ["arpa", "in-addr.arpa", "1.0.ip6.arpa", ".".join("g" * 32) + ".ip6.arpa", "web"])
def test_what_is_no_address_has_no_name(asked: Asked, name: str) -> None:
    assert parts(asked.ask(question(name, 12)))[2] == 0


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\0" * 12,
        question("web", count=2),
        question("web")[:-3],
        question("web")[:12] + b"\xc0\x0c\0\1\0\1",  # a name that points at itself
        question("web")[:12] + b"\x3fweb",
        question("web")[:-1] + b"\3",  # class CHAOS
        bytes([0, 0, 0x80, 0]) + question("web")[4:],  # an answer
    ],
)
def test_what_is_no_question_gets_no_answer(asked: Asked, packet: bytes) -> None:
    assert asked.ask(packet) is None
    assert parts(asked.ask(question("web"))) == (77, 0, 2)


def test_more_questions_than_can_wait_forget_the_oldest(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MOST_WAITING", 3)
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(resolver, "PORT", server.getsockname()[1])
        asked.servers.append("127.0.0.1")
        for _ in range(3):
            assert asked.ask(question("far.example")) is None
        fds = [fd for fd, _ in asked.resolver.interests() if fd not in asked.ends]
        assert len(fds) == 3
        asked.ask(question("far.example"))
        for fd in fds:  # they were ready in the same round
            asked.resolver.serve(fd)
        assert len(list(asked.resolver.interests())) <= 3
    assert parts(asked.ask(question("web"))) == (77, 0, 2)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_question_or_not(data: bytes) -> None:
    found = dnsmessage.read_question(data)
    assert found is None or (isinstance(found.name, str) and 17 <= found.end <= len(data))
