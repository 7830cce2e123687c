"""The texts of --network-rate and --allow-net, understood."""

from __future__ import annotations

import re
from typing import Literal

from sandbox.errors import InvalidOption
from sandbox.patterns import Pattern

_RATE = Pattern(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)(bit|bps)", re.IGNORECASE)
_LOWEST, _HIGHEST = 8_000, 10**12
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = Pattern(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?", re.IGNORECASE | re.ASCII)
_TARGET = Pattern(r"(?P<target>\[[^\]]*\](?:/\d+)?|[^:\[\]]+)(?::(?P<port>[^/:]*)(?:/(?P<protocol>\w+))?)?")


_PROTOCOLS: dict[str | None, Literal["", "tcp", "udp"]] = {None: "", "tcp": "tcp", "udp": "udp"}


def parse_network_rate(text: str) -> int:
    """tc(8)'s rates in bits a second: `10mbit`, `1.5gbit`; `1mbps` is a million bytes. InvalidOption."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise InvalidOption(f"--network-rate {text!r}: not a rate", hint="write 10mbit (bits a second) or 1mbps (bytes a second)")
    scale, base = match[2].lower(), 1024 if match[2].lower().endswith("i") else 1000
    unit: int = base ** " kmgt".index(scale[:1] or " ") * (8 if match[3].lower() == "bps" else 1)
    bits = round(float(match[1]) * unit)
    if not _LOWEST <= bits <= _HIGHEST:
        raise InvalidOption(f"--network-rate {text}: must be from 8kbit to 1tbit")
    return bits


Target = tuple[str, str, int, Literal["", "tcp", "udp"]]
"""A name or a subnet, the other empty; a port, 0 for all; a protocol, empty for both."""


def parse_allow_net(text: str) -> tuple[Target, ...]:
    """`TARGET[:PORT[/tcp|/udp]],…`, a TARGET being a name, `*.` before a name, an address or a subnet (IPv6 in brackets). InvalidOption."""
    return tuple(_allowed(each.strip()) for each in text.split(",") if each.strip())


def _allowed(text: str) -> Target:
    wrong = InvalidOption(
        f"--allow-net {text!r}: not of the form TARGET[:PORT[/tcp|/udp]]",
        hint="write packages.example.org:443, *.example.org, 10.0.0.0/8:53/udp or [2001:db8::]/32:443",
    )
    match = _TARGET.fullmatch(text)
    if match is None or match["protocol"] not in _PROTOCOLS:
        raise wrong
    port, protocol = _port(match["port"], wrong), _PROTOCOLS[match["protocol"]]
    target = re.sub(r"[\[\]]", "", match["target"])
    if re.fullmatch(r"[\d./]+|.*:.*", target):  # no domain of the root zone is a number
        import ipaddress  # few ask for one

        try:
            subnet = ipaddress.ip_network(target)
        except ValueError as err:
            raise InvalidOption(f"--allow-net {text!r}: {err}", hint="a subnet in CIDR form: 10.0.0.0/8") from err
        return "", str(subnet), port, protocol
    if not _NAME.fullmatch(target) or len(target) > 253:
        raise wrong
    return target.lower().removesuffix("."), "", port, protocol


def _port(text: str | None, wrong: InvalidOption) -> int:
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise wrong
    return int(text)
