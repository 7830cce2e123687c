"""Which networks a container is in: what is asked for when it is made, and what is changed later."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from sandbox.errors import ContainerError, InvalidOption, WrongState
from sandbox.options import RunOptions
from sandbox.records import Record, Records
from sandbox.runtime.container import Runtime
from sandbox.runtime.spec import ContainerSpec, Endpoint

_ALONE = ("none", "host")
_WORDS = {"name": "network", "alias": "names", "ip": "address", "ip6": "address6", "mac-address": "mac", "gw-priority": "priority"}
"""docker's long form of --network, and the fields it fills."""
_SHARED = "container:"


def parse_network(text: str) -> Endpoint:
    """docker's --network: a name, or `name=lab,alias=web,ip=10.0.0.2,ip6=…,mac-address=…,gw-priority=1`. InvalidOption."""
    if "=" not in text:
        return Endpoint(text)
    wrong = InvalidOption(f"--network {text!r}: not a network", hint=f"NAME, or name=NAME,… with {', '.join(list(_WORDS)[1:])}")
    given: dict[str, str | int | tuple[str, ...]] = {}
    aliases: list[str] = []
    for entry in text.split(","):
        word, equals, value = entry.partition("=")
        if word not in _WORDS or not equals or not value:
            raise wrong
        if word == "alias":
            aliases.append(value)
        elif word == "gw-priority":
            if not value.removeprefix("-").isdigit():
                raise wrong
            given["priority"] = int(value)
        else:
            given[_WORDS[word]] = value
    if "network" not in given:
        raise wrong
    return replace(Endpoint(""), names=tuple(aliases), **given)


def make_network(options: RunOptions, find: Callable[[str], Record]) -> tuple[str, tuple[Endpoint, ...]]:
    """The mode (none, host, container:ID, or the name of the first network) and the places in networks; `find` gives the container of
    a name. InvalidOption, ContainerNotFound."""
    places = [parse_network(text) for text in options.networks]
    modes = [each.network for each in places]
    if len(modes) > 1 and (alone := next((mode for mode in modes if mode in _ALONE or mode.startswith(_SHARED)), None)):
        raise InvalidOption(f"--network {alone}: cannot be combined with another network")
    if twice := next((mode for mode in modes if modes.count(mode) > 1), None):
        raise InvalidOption(f"--network {twice}: given twice")
    for server in options.dns:
        if not _is_address(server):
            raise InvalidOption(f"--dns {server!r}: not an IP address")
    if modes[0].startswith(_SHARED):
        return _shared(options, find(modes[0].removeprefix(_SHARED)), find), ()
    if modes[0] in _ALONE:
        _refuse(options, _WISHES, lambda flag: f"{flag}: --network {modes[0]} has no addresses of its own", hint="name a network")
        return modes[0], ()
    first = places[0]
    given = {"address": options.ip, "address6": options.ip6, "mac": options.mac_address}
    first = replace(first, names=(*first.names, *options.network_alias), **{name: value for name, value in given.items() if value})
    return modes[0], (first, *places[1:])


_WISHES = {
    "--ip": "ip", "--ip6": "ip6", "--mac-address": "mac_address", "--publish": "publish", "--publish-all": "publish_all",
    "--network-rate": "network_rate", "--allow-net": "allow_net",
}  # fmt: skip
_CONFLICTS = {
    "port publishing": ("publish", "publish_all"), "hostname": ("hostname",), "dns": ("dns", "dns_search"), "mac-address": ("mac_address",),
    "custom host-to-IP mapping": ("add_host",), "network-alias": ("network_alias",), "ip": ("ip", "ip6"),
    "network-rate": ("network_rate",), "allow-net": ("allow_net",),
}  # fmt: skip
"""What belongs to the container whose network it is; docker's words."""


def _shared(options: RunOptions, other: Record, find: Callable[[str], Record]) -> str:
    for what, fields in _CONFLICTS.items():
        if any(getattr(options, field) for field in fields):
            hint = f"give it to {other.name}, whose network it is"
            kind = "the container type network mode" if what == "port publishing" else "the network mode"
            raise InvalidOption(f"conflicting options: {what} and {kind}", hint=hint)
    if other.spec.shares_with:
        return _shared(options, find(other.spec.shares_with), find)
    return "host" if other.spec.network == "host" else f"{_SHARED}{other.id}"


def _refuse(options: RunOptions, wishes: dict[str, str], message: Callable[[str], str], *, hint: str) -> None:
    for flag, field in wishes.items():
        if getattr(options, field):
            raise InvalidOption(message(flag), hint=hint)


def _is_address(text: str) -> bool:
    import ipaddress  # few ask for one

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def with_name(endpoints: Sequence[Endpoint], name: str) -> tuple[Endpoint, ...]:
    """Others find the container by its name in each of them."""
    return tuple(replace(each, names=tuple(dict.fromkeys((name, *each.names)))) for each in endpoints)


def renamed(runtime: Runtime, record: Record, before: str) -> ContainerSpec:
    """Its `spec` when it was called otherwise before; who is in its networks knows at once."""
    endpoints = tuple(replace(each, names=tuple(record.name if n == before else n for n in each.names)) for each in record.spec.endpoints)
    if endpoints:
        runtime.networks.rename(record.id, before, record.name)
    return replace(record.spec, endpoints=endpoints)


def connect(runtime: Runtime, records: Records, record: Record, endpoint: Endpoint) -> Record:
    """Put a container into one more network: at once while it runs, and for later starts. WrongState, ContainerError, NetworkError,
    InvalidOption."""
    _check_can_change(record)
    network = runtime.networks.find(endpoint.network)
    if any(each.network == network.name for each in record.spec.places):
        raise ContainerError(f"container {record.name}: is in network {network.name} already")
    (endpoint,) = with_name([endpoint], record.name)
    if records.state(record.id).status in ("running", "paused", "restarting"):
        from sandbox.runtime.network.changing import connect_running

        connect_running(runtime.networks, records.directory(record.id), record.name, record.spec, endpoint)
    else:
        runtime.networks.check(network, endpoint)
    return _in_places(records, record, (*record.spec.places, endpoint))


def disconnect(runtime: Runtime, records: Records, record: Record, name: str) -> Record:
    """Take it out of a network, as `connect`."""
    _check_can_change(record)
    if all(each.network != name for each in record.spec.places):
        runtime.networks.find(name)
        raise ContainerError(f"container {record.name}: is not connected to network {name}")
    if records.state(record.id).status in ("running", "paused", "restarting"):
        from sandbox.runtime.network.changing import disconnect_running

        disconnect_running(records.directory(record.id), record.name, name)
    return _in_places(records, record, tuple(each for each in record.spec.places if each.network != name))


def _check_can_change(record: Record) -> None:
    mode = record.spec.network
    if record.spec.shares_with or mode == "host":
        whose = "the host's" if mode == "host" else "another container's"
        raise WrongState(f"container {record.name}: has {whose} network and no other", wanted="own network", actual=mode)


def _in_places(records: Records, record: Record, places: tuple[Endpoint, ...]) -> Record:
    spec = replace(record.spec, network=places[0].network if places else "none", endpoints=places)
    return records.change(record, spec, record.restart)
