"""What this host allows of networks: bridges, lists and rates are made in a namespace of their own; who else forwards is looked at."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from sandbox.runtime.network import forwarding
from sandbox.runtime.network.userspace import PROGRAMS

Row = tuple[str, bool, str, str, str]
"""A check's name, whether it is well, what was found, what it costs if not, and the remedy."""
_LONGEST = 60.0
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_LEGACY = Path("/proc/net/ip_tables_names")
_FAMILY_NAMES = {1: "inet", 2: "ip", 10: "ip6"}
_BEGIN = """
import ipaddress, os, socket, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from sandbox.runtime.init import netlink as n, syscalls as s
from sandbox.runtime.network import confinement, rules
from sandbox.runtime.spec import Allowed
s.unshare(s.CLONE_NEWNET | (s.CLONE_NEWUSER if os.geteuid() else 0))
allowed = [Allowed('x'), Allowed('', '10.0.0.0/8', 80)]
own, subnets = ['10.0.0.2', 'fd00::2'], ['10.0.0.0/24', 'fd00::/64']
place = confinement.Confined('sbxd.1', 'sbxd1', 'sbxd', '02:42:0a:00:00:01', own, subnets, allowed, 10**7)
try:
    with n.Netlink() as net:
        index = n.add_bridge(net, 'sbxd', 'doctor', '02:42:0a:00:00:01')
        n.add_veth(net, 'sbxd1', index, 'eth0', os.getpid(), '02:42:0a:00:00:02')
{more}
except OSError as err:
    sys.exit(err.strerror)
"""
_PROBES = (
    (
        "network bridge",
        "    rules.install(n.Netlink, 'sbxd', map(ipaddress.ip_network, subnets), internal=False, owners={})",
        "--network bridge, named networks and published ports are errors",
        "modprobe bridge veth nf_tables nft_ct nft_masq (Debian: the kernel image has them)",
    ),
    ("allow-list", "    confinement.install(n.Netlink, place)", "--allow-net is an error", "modprobe nft_reject_inet nft_limit nft_ct"),
    (
        "network rate",
        "    with n.Netlink() as net: n.limit_rate(net, n.index_of(net, 'sbxd1'), 10**7)\n    confinement.install(n.Netlink, place)",
        "--network-rate is an error",
        "modprobe sch_tbf nft_limit",
    ),
)  # fmt: skip


def rows() -> Iterator[Row]:
    """What networks need: an ordinary user's have no part in this machine's, but want a program that leads out. Nothing is left of it."""
    for name, more, cost, remedy in _PROBES:
        command = [sys.executable, "-I", "-c", _BEGIN.format(more=more), os.pathsep.join(sys.path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
        except subprocess.TimeoutExpired:
            yield name, False, f"no answer within {_LONGEST:.0f} s", cost, remedy
            continue
        said = done.stderr.strip().splitlines()
        yield name, not done.returncode, "works" if not done.returncode else said[-1] if said else "failed", cost, remedy
    if os.geteuid() != 0:
        yield _way_out()
    else:
        yield _forwarding()
        yield _firewall()


def _way_out() -> Row:
    found = next((path for path in map(shutil.which, PROGRAMS) if path), None)
    return "network helper", found is not None, found or "neither pasta nor slirp4netns", "networks are errors", "apt-get install passt"


def _forwarding() -> Row:
    is_on = _FORWARD.read_text().strip() == "1"
    detail = "on" if is_on else "off; the first network turns it on" if os.access(_FORWARD, os.W_OK) else "off, and not ours to turn on"
    return "ip forwarding", is_on or os.access(_FORWARD, os.W_OK), detail, "containers do not get out", "sysctl -w net.ipv4.ip_forward=1"


def _firewall() -> Row:
    """Whether somebody else decides on what is forwarded."""
    name, cost = "forwarding firewall", "containers do not get out"
    if legacy := _legacy_policy():
        remedy = "iptables-legacy -A FORWARD -i sbx+ -j ACCEPT; iptables-legacy -A FORWARD -o sbx+ -j ACCEPT"
        return name, legacy != "DROP", f"iptables-legacy: FORWARD policy {legacy}", cost, remedy
    try:
        chains = forwarding.dropping()
    except OSError as err:
        return name, False, f"nf_tables: {err.strerror}", cost, "modprobe nf_tables"
    found = ", ".join(f"{_FAMILY_NAMES[family]} {table} {chain}" for family, table, chain in chains)
    detail = f"{found}: policy drop, our two rules go to its end; a rule there that drops everything would win" if found else "none"
    return name, True, detail, cost, ""


def _legacy_policy() -> str:
    """FORWARD's policy in the old iptables, where that is in use and can be asked; else nothing."""
    tool = shutil.which("iptables-legacy")
    try:
        is_used = "filter" in _LEGACY.read_text().split()
    except OSError:
        is_used = False
    if not tool or not is_used:
        return ""
    done = subprocess.run([tool, "-S", "FORWARD"], capture_output=True, text=True, timeout=_LONGEST, check=False)
    first = done.stdout.split("\n", 1)[0].split()
    return first[2] if first[:2] == ["-P", "FORWARD"] else ""
