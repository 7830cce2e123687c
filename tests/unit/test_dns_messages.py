"""Answers of name servers, as read by the allow-list: no more of them than what was asked for."""

from __future__ import annotations

import os
import socket
import struct

import pytest

from sandbox.runtime.init import dnsmessage as dns

HEAD = b"\x12\x34\x81\x80\0\1"


def question(name: str = "www.example.test", kind: int = dns.A) -> dns.Question:
    found = dns.read_question(b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + dns.encode_name(name) + struct.pack(">HH", kind, 1))
    assert found is not None
    return found


def record(owner: bytes, kind: int, value: bytes, ttl: int = 60, family: int = 1) -> bytes:
    return owner + struct.pack(">HHIH", kind, family, ttl, len(value)) + value


def answer(*records: bytes, head: bytes = HEAD, asked: dns.Question | None = None) -> bytes:
    return head + struct.pack(">HHH", len(records), 0, 0) + (asked or question()).data[12:] + b"".join(records)


SELF, OTHER = b"\xc0\x0c", dns.encode_name("other.example.test")
ONE, TWO = socket.inet_aton("192.0.2.1"), socket.inet_aton("192.0.2.2")


def test_addresses_come_of_the_name_and_of_what_it_leads_to() -> None:
    data = answer(record(SELF, dns.CNAME, OTHER, 300), record(OTHER, dns.A, ONE, 20), record(SELF, dns.A, TWO))
    assert dns.addresses(data, question()) == (0, [ONE, TWO], 20)


@pytest.mark.parametrize(
    "row",
    [
        record(OTHER, dns.A, TWO),  # of a name that nobody asked for
        record(SELF, dns.AAAA, bytes(16)),
        record(SELF, dns.A, TWO, family=3),  # CHAOS
        record(SELF, dns.A, TWO + b"x"),
        record(OTHER, dns.CNAME, dns.encode_name("www.example.test")),  # the wrong way round
    ],
)
def test_what_was_not_asked_for_is_left_out(row: bytes) -> None:
    assert dns.addresses(answer(row, record(SELF, dns.A, ONE)), question())[1] == [ONE]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        answer(head=b"\x12\x35\x81\x80\0\1"),
        answer(head=b"\x12\x34\x01\0\0\1"),
        answer(asked=question("evil.example.test")),
        answer(asked=question(kind=dns.AAAA)),
        answer(record(b"\xc0\xff", dns.A, ONE)),
        answer(b"\xc0\x2e" * 8),  # a name that leads to itself
        HEAD + b"\0\xff\0\0\0\0" + question().data[12:],
    ],
)
def test_what_is_no_answer_to_the_question_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        dns.addresses(data, question())


def test_noise_never_does_more_than_be_refused() -> None:
    whole = answer(record(SELF, dns.CNAME, OTHER), record(OTHER, dns.A, ONE))
    for _ in range(3000):
        at, noise = int.from_bytes(os.urandom(2), "big") % len(whole), os.urandom(3)
        data = whole[:at] + noise + whole[at + int.from_bytes(os.urandom(1), "big") % 5 :]
        try:
            code, found, _ = dns.addresses(data, question())
        except ValueError:
            continue
        assert 0 <= code < 16
        assert all(len(each) == 4 for each in found)
        dns.read_question(data)
