"""`network`: the networks containers can be in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click
import msgspec

from sandbox.cli.completing import complete_containers, complete_networks
from sandbox.cli.flags import Converted, verb
from sandbox.cli.formatting import Field, Lines, Listing, labels_text, show, time_text
from sandbox.cli.images import format_option
from sandbox.cli.inspect import show_objects
from sandbox.cli.invocation import confirm, each, engine
from sandbox.cli.system import force_option
from sandbox.engine import Engine
from sandbox.options import parse_pair
from sandbox.runtime.network.networks import Network

names_argument = click.argument("names", nargs=-1, required=True, metavar="NETWORK...", shell_complete=complete_networks)


class Shown(msgspec.Struct, frozen=True):
    """One network of the list."""

    network: Network

    @property
    def created(self) -> datetime:
        """When it was made."""
        return datetime.fromtimestamp(self.network.created, UTC)


NETWORKS: Listing[Shown] = Listing(
    [
        Field("Name", "NAME", lambda s: s.network.name),
        Field("Driver", "DRIVER", lambda s: "bridge"),
        Field("Scope", "SCOPE", lambda s: "local"),
        Field("Subnet", "SUBNET", lambda s: s.network.subnet),
        Field("Subnet6", "SUBNET6", lambda s: s.network.subnet6),
        Field("Internal", "INTERNAL", lambda s: str(s.network.internal).lower()),
        Field("Labels", "LABELS", lambda s: labels_text(s.network.labels)),
        Field("CreatedAt", "CREATED AT", lambda s: time_text(s.created)),
    ],
    ["Name", "Driver", "Scope", "Subnet"],
)


@verb("ls")
@format_option
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
def ls(format: str | None, quiet: bool) -> None:
    """List the networks."""
    with engine() as opened:
        NETWORKS.show([Shown(network) for network in opened.networks.all()], "{{.Name}}" if quiet else format)


@verb("create")
@click.argument("name")
@click.option("-d", "--driver", type=click.Choice(["bridge"]), default="bridge", help="Kind of network.")
@click.option("--subnet", multiple=True, metavar="CIDR", help="Its addresses, of IPv4 and IPv6 (default: a range that is not in use here).")
@click.option("--gateway", multiple=True, metavar="ADDRESS", help="This machine's own address in it (default: the first).")
@click.option("--ipv6/--no-ipv6", default=None, help="IPv6, too (default: when this machine has it and no --subnet is given).")
@click.option("--internal", is_flag=True, help="No way out of it.")
@click.option("--label", "labels", multiple=True, type=Converted(parse_pair, "label"), metavar="KEY=VALUE", help="Set a label.")
def create(
    name: str,
    driver: str,
    subnet: Sequence[str],
    gateway: Sequence[str],
    ipv6: bool | None,
    internal: bool,
    labels: Sequence[tuple[str, str]],
) -> None:
    """Make a network. Containers in it find each other by name, and reach no other network of ours."""
    del driver  # there is one kind
    with engine() as opened:
        opened.networks.create(name, subnet=subnet, gateway=gateway, ipv6=ipv6, internal=internal, labels=dict(labels))
    show(Lines((name,)))


@verb("connect")
@click.argument("network", shell_complete=complete_networks)
@click.argument("container", shell_complete=complete_containers)
@click.option("--alias", multiple=True, metavar="NAME", help="Another name for others in it.")
@click.option("--ip", metavar="ADDRESS", help="The address it has there.")
@click.option("--ip6", metavar="ADDRESS", help="The IPv6 address it has there.")
@click.option("--mac-address", metavar="ADDRESS", help="The MAC address it has there.")
@click.option("--gw-priority", type=int, default=0, metavar="N", help="Of several networks the one with the highest leads out.")
def connect(
    network: str, container: str, alias: Sequence[str], ip: str | None, ip6: str | None, mac_address: str | None, gw_priority: int
) -> None:
    """Put a container into one more network, at once when it runs."""
    with engine() as opened:
        found = opened.container(container)
        found.connect(network, alias=alias, ip=ip, ip6=ip6, mac_address=mac_address, priority=gw_priority)


@verb("disconnect")
@click.argument("network", shell_complete=complete_networks)
@click.argument("container", shell_complete=complete_containers)
@click.option("-f", "--force", is_flag=True, help="Also when it is not in it.")
def disconnect(network: str, container: str, force: bool) -> None:
    """Take a container out of a network, at once when it runs."""
    with engine() as opened:
        found = opened.container(container)
        if not force or network in found.networks:
            found.disconnect(network)


@verb("rm")
@names_argument
def rm(names: Sequence[str]) -> int:
    """Remove networks that no container is in."""

    def remove(name: str) -> str:
        opened.networks.remove(name)
        return name

    with engine() as opened:
        return each(names, remove)


@verb("inspect")
@names_argument
@click.option("-f", "--format", metavar="FORMAT", help="json, or a template.")
def inspect(names: Sequence[str], format: str | None) -> int:
    """Show everything about networks as JSON."""
    return show_objects(names, _facts, format)


def _facts(opened: Engine, name: str) -> dict[str, object]:
    network = opened.networks.find(name)
    people = {container.id: container.name for container in opened.containers()}
    return {
        "Name": network.name,
        "Created": Shown(network).created.isoformat(),
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": True,
        "EnableIPv6": bool(network.subnet6),
        "IPAM": {
            "Driver": "default",
            "Config": [{"Subnet": str(subnet), "Gateway": network.gateways[version]} for version, subnet in network.subnets.items()],
        },
        "Internal": network.internal,
        "Labels": network.labels,
        "Containers": {
            container: {
                "Name": people.get(container, ""),
                "MacAddress": lease.mac,
                "IPv4Address": f"{address}/{network.addresses.prefixlen}",
                "IPv6Address": f"{lease.address6}/{network.subnets[6].prefixlen}" if lease.address6 else "",
            }
            for container, (address, lease) in opened.networks.members(network).items()
        },
    }


@verb("prune")
@force_option
def prune(force: bool) -> None:
    """Remove the networks that no container is in; what the default one left on this machine, too."""
    if not force and not confirm("This will remove all networks that no container is in. Are you sure?"):
        return
    with engine() as opened:
        show(Lines(tuple(opened.networks.prune())))
