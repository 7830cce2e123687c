"""An ordinary user's network: pasta, else slirp4netns, carries a container's packets as sockets of that user (pasta(1), slirp4netns(1)).

Each container has a network of its own, with a private address behind the user's; nobody needs a bridge, a route or a rule of the host.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any  # an attachment is JSON

from msgspec.structs import asdict

from sandbox.errors import Unsupported
from sandbox.runtime.init.steps import LINK
from sandbox.runtime.init.usernet import PID, PID_FILE, READY
from sandbox.runtime.network.networks import DEFAULT
from sandbox.runtime.network.subnets import host_routes
from sandbox.runtime.spec import ContainerSpec

PROGRAMS = ("pasta", "slirp4netns")
"""In this order: pasta needs no second TCP stack."""
_SUBNETS = ("10.0.2.0/24", "10.0.3.0/24", "172.31.253.0/24", "192.168.253.0/24")
_GATEWAY, _CONTAINER = 2, 100  # slirp4netns's; pasta is told them
_TUN = Path("/dev/net/tun")
_HINT = "install passt or slirp4netns (Debian: apt-get install passt); or use --network host or --network none"


@contextlib.contextmanager
def attached(root: Path, spec: ContainerSpec, servers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the supervisor needs to give a container this network. `servers`: who is asked for names. Nothing is reserved.

    Unsupported for what only root's networks have, and where the helper programs are missing.
    """
    _check(spec)
    program = _program()
    if program is None:
        raise Unsupported(f"network {spec.network}: neither pasta nor slirp4netns is installed", feature="network", hint=_HINT)
    if not os.access(_TUN, os.R_OK | os.W_OK):
        hint = f"as root: modprobe tun; chmod 0666 {_TUN}; or use --network host or --network none"
        raise Unsupported(f"network {spec.network}: {_TUN} is not usable by uid {os.geteuid()}", feature="network", hint=hint)
    subnet = _free_subnet()
    place = root / "networks" / DEFAULT  # where names are looked up: nobody else is in this network
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    argv = _COMMANDS[Path(program).name](program, subnet)
    pid_file = str(root / "containers" / spec.id / "network.pid") if PID_FILE in argv else ""
    (endpoint,) = spec.places
    own = {
        "name": endpoint.network, "end": LINK, "address": str(subnet[_CONTAINER]), "prefix": subnet.prefixlen, "address6": "",
        "gateways": [str(subnet[_GATEWAY])], "mac": "", "lease": str(place / "none"), "internal": False, "router": False,
        "names": endpoint.names,
    }  # fmt: skip
    yield {
        "places": [own], "helper": {"argv": argv, "pid_file": pid_file}, "containers": str(root / "containers"),
        "servers": list(servers), "ports": [asdict(port) for port in spec.ports], "container": spec.id, "allow": None,
    }  # fmt: skip


def cannot_share(name: str) -> Unsupported:
    """The error for a network of several containers."""
    return Unsupported(
        f"network {name}: an ordinary user's containers cannot share a network",
        feature="network",
        hint="start one with --network bridge (and all the ports to publish), the others with --network container:NAME: they reach each "
        "other on 127.0.0.1. Containers that root starts share networks",
    )


def _check(spec: ContainerSpec) -> None:
    for endpoint in spec.places:
        if endpoint.network != DEFAULT:
            raise cannot_share(endpoint.network)
    wishes = spec.places[0]
    for flag, given in (("--ip", wishes.address), ("--ip6", wishes.address6), ("--mac-address", wishes.mac)):
        if given:
            raise Unsupported(f"{flag}: an ordinary user's containers cannot choose their address", feature=flag, hint="leave it out")
    for flag, asked in (("--allow-net", spec.allow_net), ("--network-rate", spec.network_rate)):
        if asked:  # it could not be held to them: what runs as this user can change what this user makes
            raise Unsupported(f"{flag}: only containers that root starts can be held to it", feature=flag, hint="use --network none")


def _program() -> str | None:
    return next((found for found in map(shutil.which, PROGRAMS) if found), None)


def _free_subnet() -> ipaddress.IPv4Network:
    """One that the host does not reach otherwise, else the usual one: then some of the host's own network is out of reach."""
    used = host_routes()
    subnets = [ipaddress.IPv4Network(text) for text in _SUBNETS]
    return next((subnet for subnet in subnets if not any(subnet.overlaps(other) for other in used)), subnets[0])


def _pasta(program: str, subnet: ipaddress.IPv4Network) -> list[str]:
    """Ports are our own proxy's, and the gateway's address does not lead to the host's loopback."""
    addresses = ["--address", str(subnet[_CONTAINER]), "--netmask", str(subnet.prefixlen), "--gateway", str(subnet[_GATEWAY])]
    ports = ["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none", "--no-map-gw"]
    return [program, "--quiet", "--config-net", "--ns-ifname", LINK, *addresses, *ports, "--pid", PID_FILE, PID]


def _slirp4netns(program: str, subnet: ipaddress.IPv4Network) -> list[str]:
    ways = ["--configure", "--mtu", "65520", "--cidr", str(subnet), "--disable-host-loopback", "--disable-dns"]
    return [program, *ways, "--ready-fd", READY, PID, LINK]


_COMMANDS = {"pasta": _pasta, "slirp4netns": _slirp4netns}
