"""Messages of the domain name system (RFC 1035, section 4): questions read, answers read and made."""

from __future__ import annotations

import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

A, CNAME, PTR, AAAA = 1, 5, 12, 28
FAILED, NO_NAME, REFUSED = 2, 3, 5
FAMILIES = {A: socket.AF_INET, AAAA: socket.AF_INET6}
_IN = 1
_RESPONSE, _TRUNCATED, _RECURSION = 0x8000, 0x0200, 0x0080
_MOST_JUMPS = 64


class Question:
    """What is asked: the `name` in small letters, the `kind` of record; `data` is the message, the question ends at `end`."""

    __slots__ = ("data", "end", "kind", "name")

    def __init__(self, data: bytes, name: str, kind: int, end: int) -> None:
        self.data, self.name, self.kind, self.end = data, name, kind, end

    @property
    def number(self) -> int:
        """The message's."""
        return int.from_bytes(self.data[:2], "big")


def read_question(data: bytes) -> Question | None:
    """None when it is none that anybody could answer."""
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
    return Question(data, ".".join(labels), kind, at + 5) if family == _IN else None


def address_of_arpa(name: str) -> str:
    """The address whose name is asked for by `4.3.2.1.in-addr.arpa` (RFC 1035) or `1.0.….ip6.arpa` (RFC 3596); empty for what is none."""
    labels = name.split(".")[::-1]
    if labels[:2] == ["arpa", "in-addr"]:
        return ".".join(labels[2:])
    digits = "".join(labels[2:])
    if labels[:2] != ["arpa", "ip6"] or len(digits) != 32 or not all(each in "0123456789abcdef" for each in digits):
        return ""
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))


def answer(question: Question, records: Sequence[tuple[int, bytes]] = (), *, code: int = 0, ttl: int = 1) -> bytes:
    """The answer of these (kind, data), all of the name that was asked for. `ttl`: seconds it may be remembered."""
    number, flags = struct.unpack_from(">HH", question.data)
    head = struct.pack(">HHHHHH", number, _RESPONSE | flags & 0x0100 | _RECURSION | code, 1, len(records), 0, 0)
    rows = (struct.pack(">HHHIH", 0xC00C, kind, _IN, ttl, len(value)) + value for kind, value in records)
    return head + question.data[12 : question.end] + b"".join(rows)


def truncated(question: Question) -> bytes:
    """Ask again, by TCP."""
    made = answer(question)
    return made[:2] + (int.from_bytes(made[2:4], "big") | _TRUNCATED).to_bytes(2, "big") + made[4:]


def encode_name(name: str) -> bytes:
    """A name as its labels."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def is_truncated(data: bytes) -> bool:
    """Whether the rest is to be had by TCP alone."""
    return len(data) >= 4 and bool(int.from_bytes(data[2:4], "big") & _TRUNCATED)


def addresses(data: bytes, question: Question) -> tuple[int, list[bytes], int]:
    """What an answer says: its code, the addresses of the name that was asked for (of it, or of the names it leads to by CNAME), and
    the shortest time in seconds that all of that is good for. ValueError for what is no answer to the question."""
    if len(data) < 12:
        raise ValueError("no message")
    number, flags, questions, answers, *_ = struct.unpack_from(">HHHHHH", data)
    if number != question.number or not flags & _RESPONSE or questions != 1:
        raise ValueError("not an answer")
    name, at = _read_name(data, 12)
    if name != question.name or data[at : at + 4] != question.data[question.end - 4 : question.end]:
        raise ValueError("an answer to another question")
    at += 4
    known, found, ttls = {name}, [], []
    for _ in range(answers):
        owner, at = _read_name(data, at)
        if at + 10 > len(data):
            raise ValueError("it ends too early")
        kind, family, ttl, size = struct.unpack_from(">HHIH", data, at)
        at += 10
        if at + size > len(data):
            raise ValueError("it ends too early")
        value = data[at : at + size]
        if owner in known and family == _IN and kind in (question.kind, CNAME):
            ttls.append(ttl if ttl < 1 << 31 else 0)
            if kind == CNAME:
                known.add(_read_name(data, at)[0])
            elif size == (4 if kind == A else 16):
                found.append(value)
        at += size
    return flags & 15, found, min(ttls, default=0)


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    """A name that may be compressed, and where it ends; ValueError."""
    labels: list[str] = []
    end = -1
    for _ in range(_MOST_JUMPS * 2):
        if at >= len(data):
            break
        size = data[at]
        if size >= 0xC0:
            end = at + 2 if end < 0 else end
            at = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
        elif size == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        else:
            labels.append(data[at + 1 : at + 1 + size].decode("ascii", "replace").lower())
            at += 1 + size
    raise ValueError("not a name")
