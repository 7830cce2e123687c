"""Containerised kernels under Jupyter Server: several servers and kernels at once, what one may do to another, what a kernel uses."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from sandbox.errors import ContainerNotFound
from tests.support.hub import PERSON, single_user_server
from tests.support.kernel import KERNEL_MARKS, Kernel, KernelPlace, kernel_place, wait_removed
from tests.support.lab import Lab, ask, jupyter_lab

pytestmark = KERNEL_MARKS

LIMIT = "220m"
REASON = "out of memory: killed at the 220 MiB limit"
SMALL = 64 << 20
# What a cgroup's memory may be counted too high by: each CPU is charged for this much ahead
# (the kernel's cgroup-v1/memory.rst, 5.5; MEMCG_CHARGE_BATCH in mm/memcontrol.c).
CHARGED_AHEAD = 64 * mmap.PAGESIZE * (os.cpu_count() or 1)
_NOTHING: Mapping[str, object] = {}


@pytest.fixture(scope="module")
def place(ipykernel_base: Path) -> Iterator[KernelPlace]:
    """With the kernels `limited`, of an image's ipykernel, and `bridged`, the Sandbox kernel."""
    with kernel_place(ipykernel_base) as place:
        for flags in (["--name", "limited"], ["--name", "bridged", "--language", "python"]):
            place.install("localhost/ipy", *flags, "-m", LIMIT, "--network", "none", "--replace")
        yield place


@pytest.fixture(scope="module")
def lab(place: KernelPlace) -> Iterator[Lab]:
    """One server for all tests."""
    with jupyter_lab(place.work, place.root) as running:
        yield running


@dataclass(frozen=True)
class Session:
    """A notebook's kernel on a server: its id there, and its client."""

    id: str
    kernel: Kernel


@contextlib.contextmanager
def session(lab: Lab, notebook: str, kernel: str = "limited", *, metadata: Mapping[str, object] = _NOTHING) -> Iterator[Session]:
    """Started by the server as a browser asks it to."""
    (lab.directory / notebook).write_text(json.dumps({"cells": [], "metadata": dict(metadata), "nbformat": 4, "nbformat_minor": 5}))
    made = lab.ask("api/sessions", {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": kernel}})
    kernel_id = made["kernel"]["id"]
    client = BlockingKernelClient(connection_file=str(lab.private / f"runtime/kernel-{kernel_id}.json"))
    client.load_connection_file()
    client.start_channels(hb=False)  # which would take a kernel that is still starting for dead
    try:
        opened = Kernel(client, lab.root, lambda: lab.ask(f"api/kernels/{kernel_id}/interrupt", {}))
        opened.wait_connected()
        yield Session(kernel_id, opened)
    finally:
        client.stop_channels()
        with contextlib.suppress(urllib.error.URLError):  # the server may have been killed
            ask(lab.url, f"api/sessions/{made['id']}", lab.token, method="DELETE")


def test_memory_hog_harms_neither_server_nor_neighbour_and_is_restarted_with_the_reason(lab: Lab) -> None:
    with session(lab, "neighbour.ipynb") as neighbour, session(lab, "hog.ipynb") as hog:
        started = lab.ask("api/status")["started"]
        neighbour.kernel.run("x = 'unharmed'")
        hog.kernel.client.execute("x = 1\ny = bytearray(1 << 30)")
        hog.kernel.wait_connected()  # to the next one, by the server's own restarter
        assert hog.kernel.text("print('x' in globals())", "stderr") == f"The kernel before this one ended: {REASON}\n"
        assert neighbour.kernel.text("print(x)") == "unharmed\n"
        assert lab.ask("api/status")["started"] == started
    assert REASON in lab.log


def test_one_server_killed_leaves_the_kernels_of_another_alive(place: KernelPlace, lab: Lab) -> None:
    with session(lab, "stays.ipynb") as stays, jupyter_lab(place.work, place.root, name="killed") as other:
        before = {each.id for each in place.engine.containers()}
        with session(other, "goes.ipynb") as goes, session(other, "too.ipynb", "bridged") as too:
            stays.kernel.run("x = 'alive'")
            assert [each.kernel.text("print(2)") for each in (goes, too)] == ["2\n", "2\n"]
            theirs = [each for each in place.engine.containers() if each.id not in before]
            assert len(theirs) == 2
            os.kill(other.process.pid, signal.SIGKILL)
            other.process.wait()
        assert stays.kernel.text("print(x)") == "alive\n"
        with session(lab, "more.ipynb") as more:
            assert more.kernel.text("print(2)") == "2\n"
        for container in theirs:
            with contextlib.suppress(ContainerNotFound):  # gone with its client
                container.remove(force=True)


@pytest.mark.parametrize("kernel", ["limited", "bridged"])
def test_resource_usage_is_of_the_container(place: KernelPlace, lab: Lab, kernel: str) -> None:
    def used() -> dict[str, Any]:
        return dict(lab.ask(f"api/metrics/v1/kernel_usage/get_usage/{running.id}")["content"])

    with session(lab, f"usage-{kernel}.ipynb", kernel) as running:
        running.kernel.run("1")
        before = used()
        running.kernel.run(f"kept = bytearray({SMALL}); kept[::4096] = bytes([1]) * len(kept[::4096])\nn = sum(range(10 ** 6))")
        after = used()
    assert after["kernel_memory"] - before["kernel_memory"] >= SMALL - CHARGED_AHEAD
    assert after["kernel_memory"] < 220 << 20
    assert after["kernel_cpu"] > 0
    assert {"hostname", "pid", "cpu_count", "host_virtual_memory"} <= set(after)


def test_notebook_that_asks_for_more_is_refused_with_the_remedy_and_starts_when_it_is_trusted(place: KernelPlace, lab: Lab) -> None:
    asked = {"volumes": [f"{place.base}:/given:ro"]}
    notebook = lab.directory / "asks.ipynb"
    notebook.write_text(json.dumps({"cells": [], "metadata": {"sandbox": asked}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        lab.ask("api/sessions", {"path": notebook.name, "name": notebook.name, "type": "notebook", "kernel": {"name": "limited"}})
    told = json.loads(refused.value.read())["message"]
    assert told.endswith(f"asks for volumes {place.base}:/given:ro, and the notebook is not trusted (sandbox trust NOTEBOOK)")
    subprocess.run([sys.executable, "-m", "sandbox", "trust", str(notebook)], check=True, capture_output=True)
    with session(lab, notebook.name, metadata={"sandbox": asked}) as running:
        assert running.kernel.text("import os; print('work' in os.listdir('/given'))") == "True\n"


@pytest.mark.slow
def test_single_user_server_of_a_hub_has_contained_kernels_that_do_not_know_its_token(place: KernelPlace) -> None:
    code = "import os, socket; print(os.getppid(), [name for _, name in socket.if_nameindex()], 'JUPYTERHUB_API_TOKEN' in os.environ)"
    with single_user_server(place.work, place.root) as (hub, server):
        before = {each.id for each in place.engine.containers()}
        with session(server, "hub.ipynb") as contained, session(server, "hub2.ipynb", "bridged") as bridged:
            assert contained.kernel.text(code) == "1 ['lo'] False\n"
            assert bridged.kernel.text(code).endswith(" ['lo'] False\n")
            theirs = {each.id for each in place.engine.containers()} - before
            assert len(theirs) == 2
            ask(hub.url, f"api/users/{PERSON}/server", hub.token, method="DELETE")
            wait_removed(place.engine, theirs)
