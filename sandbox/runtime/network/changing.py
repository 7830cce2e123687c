"""The networks of a container that runs: its supervisor changes them, by whoever comes through its door."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # an attachment is JSON

from sandbox.errors import NetworkError, WrongState
from sandbox.runtime.init import control, files, link
from sandbox.runtime.network.networks import Networks
from sandbox.runtime.spec import ContainerSpec, Endpoint


def connect_running(networks: Networks, directory: Path, name: str, spec: ContainerSpec, endpoint: Endpoint) -> None:
    """Into one more network; nothing is left when that fails. WrongState, NetworkError, InvalidOption."""
    state = files.read_json(str(directory / "state.json")) or {}
    used = {place["end"] for place in (state.get("network") or {}).get("places", ())}
    end = next(text for number in itertools.count() if (text := f"eth{number}") not in used)
    place = networks.join(networks.find(endpoint.network), spec, endpoint, end)
    try:
        _ask(directory, name, {"ask": "connect", "place": place})
    except BaseException:
        networks.forget(place)
        raise


def disconnect_running(directory: Path, name: str, network: str) -> None:
    """Out of one of its networks. WrongState, NetworkError."""
    _ask(directory, name, {"ask": "disconnect", "network": network})


def _ask(directory: Path, name: str, wish: Mapping[str, Any]) -> None:
    hint = "stop it, connect it, and start it again"
    try:
        end = control.connect(str(directory))
    except (FileNotFoundError, ConnectionRefusedError) as err:
        raise WrongState(f"container {name}: was started without a network", wanted="own network", actual="none", hint=hint) from err
    with end:
        link.send(end, wish)
        answer, _ = link.receive(end)
    if answer is None:
        raise WrongState(f"container {name}: ended meanwhile", wanted="running", actual="exited")
    if answer["event"] != "changed":
        raise NetworkError(f"container {name}: {answer['message']}", hint=hint if "without a network" in answer["message"] else None)
