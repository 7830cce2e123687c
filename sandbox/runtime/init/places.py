"""A container's places in networks, each a JSON object that `Networks.join` made: links, the right to send, routes.

The host's side of it, from where also the inside of a running container is changed.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sandbox.runtime.init import files, netlink
from sandbox.runtime.init import syscalls as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    Place = Mapping[str, Any]


def plug_in(sockets: netlink.Sockets, place: Place, pid: int) -> None:
    """A link between the bridge of a place and the network namespace of `pid`, and the right to send. OSError."""
    with sockets(netlink.ROUTE) as net:
        try:
            _add_link(net, place, pid)
        except FileExistsError:  # of the run before: Linux is still at taking it away, or another container shares its network
            netlink.remove_link(net, place["link"])
            _add_link(net, place, pid)
        if place["rate"]:
            netlink.limit_rate(net, netlink.index_of(net, place["link"]), place["rate"])
    _change_owners(sockets, place, netlink.NEW_ELEMENT, netlink.CREATE)


def _add_link(net: netlink.Netlink, place: Place, pid: int) -> None:
    bridge = netlink.index_of(net, place["bridge"])  # anew: it may have been made again since the first start
    netlink.add_veth(net, place["link"], bridge, place["end"], pid, place["mac"])


def unplug(sockets: netlink.Sockets, place: Place) -> None:
    """Take the link away while the container lives. OSError."""
    with sockets(netlink.ROUTE) as net:
        netlink.remove_link(net, place["link"])


def forget(sockets: netlink.Sockets | None, place: Place) -> None:
    """Give the address back: what held it to its allow-list and rate, and what could send from it, is forgotten. `sockets` None: where it
    was is gone, with all rules. The link goes with its network namespace. That the network was taken away, or its rules flushed, is fine.
    Whoever starts a container may have forgotten it for us, and given the address to the next, or to the same container's next run:
    networks.py's lock orders that."""
    try:
        lock = os.open(f"{os.path.dirname(place['lease'])}/../lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_ours = _runs(place["lease"], place["owner"]) == place["since"]
        if sockets and (is_ours or not _is_there_again(place)):
            _unless_gone(_drop_tables, sockets, place)
            _unless_gone(_drop_owners, sockets, place)
        if is_ours:
            files.remove_file(place["lease"])
    finally:
        os.close(lock)


def _runs(path: str, container: str) -> float | None:
    """Since when a lease is this container's; None: it is not."""
    lease = files.read_json(path) or {}
    since: float | None = lease.get("since") if lease.get("container") == container else None
    return since


def _is_there_again(place: Place) -> bool:
    """Whether the same container's next run is in this network: what is called by the container is that one's."""
    directory = os.path.dirname(place["lease"])
    leases = [f"{directory}/{name}" for name in os.listdir(directory) if name[0].isdigit()]
    return any(_runs(path, place["owner"]) not in (None, place["since"]) for path in leases)


def _unless_gone(drop: Callable[[netlink.Sockets, Place], None], sockets: netlink.Sockets, place: Place) -> None:
    try:
        drop(sockets, place)
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise


def _drop_owners(sockets: netlink.Sockets, place: Place) -> None:
    _change_owners(sockets, place, netlink.DEL_ELEMENT, 0)


def _change_owners(sockets: netlink.Sockets, place: Place, kind: int, flags: int) -> None:
    requests = [
        (kind, netlink.element(place["bridge"], name, keys, family=netlink.BRIDGE), flags)
        for name, keys in netlink.owner_keys(place["link"], place["mac"], [place["address"], *place["addresses6"]]).items()
    ]
    with sockets(netlink.NETFILTER) as net:
        net.transact(requests)


def _drop_tables(sockets: netlink.Sockets, place: Place) -> None:
    """The rules that held it to its allow-list and its rate."""
    if families := place["families"]:
        table = netlink.text(1, place["table"])
        with sockets(netlink.NETFILTER) as net:
            net.transact([(netlink.DEL_TABLE, netlink.nft_body(family, table), 0) for family in families])


_FIXED = 2
"""The lines of /etc/hosts that are for loopback come first."""

# inside -------------------------------------------------------------------------------------------------------------------


def links(places: Sequence[Place]) -> list[dict[str, Any]]:
    """How each place's link is set up inside: arguments of `netlink.configure`."""
    default = ways_out(places)
    return [
        {
            "name": place["end"],
            "addresses": place["addresses"],
            "routes": [*place["routes"], *([gateway, ""] for end, gateway in default if end == place["end"])],
            "rate": place["rate"],
        }
        for place in places
    ]


def ways_out(places: Sequence[Place]) -> list[tuple[str, str]]:
    """By which link and gateway everything else goes, for each version of IP: of the highest priority, the first."""
    found = []
    for is_version6 in (False, True):
        able = [(place, each) for place in places for each in place["gateways"] if (":" in each) == is_version6]
        if able:
            place, gateway = max(able, key=lambda each: each[0]["priority"])
            found.append((place["end"], gateway))
    return found


def hosts_lines(places: Sequence[Place], hostname: str) -> list[str]:
    """What /etc/hosts says of the container itself."""
    return [f"{address}\t{hostname}" for place in places for address in (place["address"], place["address6"]) if address]


def renew_hosts(text: str, before: Sequence[Place], now: Sequence[Place], hostname: str) -> str:
    """/etc/hosts when its places have changed; the lines of others stay."""
    gone, come = hosts_lines(before, hostname), hosts_lines(now, hostname)
    kept = [line for line in text.splitlines() if line not in gone]
    return "".join(f"{line}\n" for line in [*kept[:_FIXED], *come, *kept[_FIXED:]])


def set_up(place: Place, places: Sequence[Place]) -> None:
    """Inside a running container: its new link, and what it means for its routes. OSError."""
    if place["router"]:
        for path in redirect_settings(place["end"]):
            with open(path, "w", encoding="ascii") as file:
                file.write("0")
    (link,) = [each for each in links(places) if each["name"] == place["end"]]
    with netlink.Netlink() as net:
        netlink.configure(net, link["name"], addresses=link["addresses"], routes=place["routes"], rate=link["rate"])
    route(places)


def route(places: Sequence[Place]) -> None:
    """Inside a running container: what is left of its networks leads out. OSError."""
    with netlink.Netlink() as net:
        for end, gateway in ways_out(places):
            netlink.add_route(net, netlink.index_of(net, end), gateway, replaces=True)


def redirect_settings(end: str) -> Iterator[str]:
    """Where to say that a confined container reaches its neighbours through the host, whatever that says of a shorter way (ICMP)."""
    for version in ("ipv4", "ipv6"):
        if os.path.isdir(f"/proc/sys/net/{version}"):
            yield f"/proc/sys/net/{version}/conf/{end}/accept_redirects"


def inside(pid: int, act: Callable[[], None]) -> None:
    """Do it in the network namespace of `pid`. Only for a process with one thread; one that could not come back must not go on."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        s.setns(other, s.CLONE_NEWNET)
        try:
            act()
        finally:
            s.setns(own, s.CLONE_NEWNET)
    finally:
        os.close(own)
        os.close(other)
