"""A container that is a name server itself: ours makes room for it on port 53.

docker does so for every container, by address translation inside. Rules that change the port of single packets, back and forth, need no
connections to be tracked; still they are for those alone that publish or expose the port.
"""

from __future__ import annotations

import socket

from sandbox.runtime.network import nftables as t

PORT = 53053
"""Where our name server's sockets are instead."""
_IP, _TABLE, _CHAIN, _RAW = 2, "sandbox-names", "output", -300
_CHECKSUM = {t.TCP: 16, t.UDP: 6}
_SOURCE, _TARGET = (12, 0), (16, 2)
"""Where a packet has its sender's, its receiver's address and port."""


def requests(address: str, port: int) -> list[t.Request]:
    """What is sent to our name server's port goes to `PORT`, and the answers come from where it was sent to."""
    rules = [
        _redirect(protocol, address, ends, before, after)
        for protocol in _CHECKSUM
        for ends, before, after in ((_TARGET, port, PORT), (_SOURCE, PORT, port))
    ]
    return [*t.fresh_table(_IP, _TABLE), t.chain(_IP, _TABLE, _CHAIN, "filter", t.OUTPUT, _RAW), *rules]


def _redirect(protocol: bytes, address: str, ends: tuple[int, int], before: int, after: int) -> t.Request:
    address_at, port_at = ends
    is_ours = t.payload(t.NETWORK, address_at, 4) + t.compare(socket.inet_aton(address)) + t.meta(t.L4PROTO) + t.compare(protocol)
    has_port = t.payload(t.TRANSPORT, port_at, 2) + t.compare(before.to_bytes(2, "big"))
    change = t.write_transport(port_at, after.to_bytes(2, "big"), _CHECKSUM[protocol])
    return t.rule(_IP, _TABLE, _CHAIN, is_ours, has_port, change)
