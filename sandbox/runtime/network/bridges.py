"""Where an engine's bridges are: on this machine for root; for an ordinary user see userspace.InHub, which answers to the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from sandbox.runtime.init import netlink as n
from sandbox.runtime.network import forwarding, subnets

if TYPE_CHECKING:
    from sandbox.runtime.spec import ContainerSpec


class Where(Protocol):
    """Where they are."""

    @property
    def hub(self) -> str:
        """The directory of the hub that has them; empty: this machine has."""

    def use(self) -> contextlib.AbstractContextManager[n.Sockets]:
        """Netlink sockets there, for one operation of one thread. SandboxError when it cannot be had."""

    def use_if_there(self) -> contextlib.AbstractContextManager[n.Sockets | None]:
        """As `use`, for taking things away; None: there cannot be any."""

    def check(self, spec: ContainerSpec) -> None:
        """Unsupported for a container that cannot be in a network there."""

    def lead_out(self, bridge: str) -> None:
        """See that others' rules let through what comes from the bridge, and the answers. OSError."""

    def switch_on(self, version: int) -> None:
        """See that packets of this version of IP are passed on. OSError."""

    def take_back(self, bridge: str) -> None:
        """Undo `lead_out`. OSError."""

    def has_ipv6(self) -> bool:
        """Whether IPv6 leads out from there."""

    def rest(self) -> None:
        """What can be made anew need not stay."""

    def close(self) -> None:
        """The engine is closed."""


class OnHost:
    """On this machine."""

    hub = ""

    @contextlib.contextmanager
    def use(self) -> Iterator[n.Sockets]:
        """Its own."""
        yield n.Netlink

    @contextlib.contextmanager
    def use_if_there(self) -> Iterator[n.Sockets | None]:
        """It always is."""
        yield n.Netlink

    def check(self, spec: ContainerSpec) -> None:
        """Every container can."""

    def lead_out(self, bridge: str) -> None:
        """See forwarding."""
        forwarding.let_through(bridge)

    def switch_on(self, version: int) -> None:
        """See forwarding."""
        forwarding.switch_on(version)

    def take_back(self, bridge: str) -> None:
        """See forwarding."""
        forwarding.take_back(bridge)

    def has_ipv6(self) -> bool:
        """And may pass it on."""
        return subnets.has_ipv6()

    def rest(self) -> None:
        """Bridges are taken down one by one."""

    def close(self) -> None:
        """Nothing is held."""
