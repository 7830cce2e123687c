"""Images that a cell has to bring first: pulled as docker's run pulls them, and shown while they come."""

from __future__ import annotations

import gzip
import itertools
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # a kernel's messages

import pytest

from tests.support.bad_registry import BadRegistry, bad_registry, digest_of, held, layer_of
from tests.support.kernel import SOCKET_WARNINGS, Kernel, started_kernel
from tests.support.leftovers import nothing_left

pytestmark = [pytest.mark.anybody, *SOCKET_WARNINGS]

SIZE = 3 << 20
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Box:
    """An image in the registry that no store has: busybox, and a layer that takes its time."""

    name: str
    big: bytes

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="module")
def registry() -> Iterator[BadRegistry]:
    with bad_registry() as made:
        yield made


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    directory = tmp_path_factory.mktemp("pulls")
    root = directory / "state"
    with started_kernel("python3", root, directory, env={"SANDBOX_ROOT": str(root)}) as (_, opened):
        code = "%load_ext sandbox\nimport os; os.environ.pop('PYTEST_CURRENT_TEST', None)  # this is no nbval: what is shown may change"
        assert not [each for each in opened.run(code) if each["type"] == "error"]
        yield opened
    nothing_left(root)


@pytest.fixture
def box(kernel: Kernel, registry: BadRegistry, busybox_tar: Path) -> Iterator[Box]:
    number = next(_numbers)
    name, big = f"team/box:{number}", layer_of("big", SIZE, seed=number)
    registry.add_image(name, gzip.compress(busybox_tar.read_bytes(), 1), big, config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
    yield Box(f"{registry.host}/{name}", big)
    kernel.run("%container prune -f --all")
    assert registry.is_spent


def run_held(kernel: Kernel, registry: BadRegistry, box: Box, code: str) -> list[dict[str, Any]]:
    """The outputs of the cell, whose big layer goes on when the cell has shown how much of it is there."""
    gate = threading.Event()
    registry.fault("GET", f"/blobs/{digest_of(box.big)}", held(SIZE // 2, gate))
    outputs: list[dict[str, Any]] = []

    def take(message: dict[str, Any]) -> None:
        if message["msg_type"] in ("stream", "display_data", "execute_result", "error", "update_display_data"):
            outputs.append({"type": message["msg_type"], **message["content"]})
            if re.search(r"\d+kB / 3\.15MB", str(message["content"].get("data", {}).get("text/html"))):
                gate.set()

    kernel.client.execute_interactive(code, allow_stdin=False, output_hook=take, timeout=60)
    assert gate.is_set(), outputs
    assert not [each for each in outputs if each["type"] == "error"], outputs
    return outputs


def last_display(outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What stands in the place of the first display in the end."""
    first = next(each for each in outputs if each["type"] == "display_data")
    same = [each for each in outputs if each.get("transient", {}).get("display_id") == first["transient"]["display_id"]]
    assert same[0]["type"] == "display_data" and {each["type"] for each in same[1:]} <= {"update_display_data"}
    return same[-1]


def text(outputs: list[dict[str, Any]]) -> str:
    return "".join(each["text"] for each in outputs if each["type"] == "stream")


@pytest.mark.parametrize("magic", ["%%container", "%%sandbox"])
def test_a_cell_pulls_its_image_and_shows_how_far_it_is(kernel: Kernel, registry: BadRegistry, box: Box, magic: str) -> None:
    outputs = run_held(kernel, registry, box, f"{magic} {box}\nls -l big | cut -c 1-10\n")
    assert text(outputs) == "-rw-r--r--\n"
    done = last_display(outputs)
    assert done["data"]["text/plain"].startswith(f"✓ Pulled {box} · 2 layers · ")
    figures = done["metadata"]["org.jupyter.sandbox"]["transfer"]
    assert [layer["phase"] for layer in figures["layers"]] == ["done", "done"]
    assert figures["moved"] > SIZE
    assert "transfer" not in str(kernel.run(f"{magic} {box}\ntrue\n")), "it is here"


def test_pull_flags_of_a_cell_are_heeded(kernel: Kernel, registry: BadRegistry, box: Box) -> None:
    assert kernel.error(f"%%container --pull never {box}\ntrue\n")["ename"] == "ImageNotFound"
    asked = len(registry.requests("GET", "/manifests/"))
    assert "Pulled" in str(kernel.run(f"%%container --pull missing {box}\ntrue\n"))
    first = len(registry.requests("GET", "/manifests/"))
    kernel.run(f"%%container --pull missing {box}\ntrue\n")
    assert (first > asked, len(registry.requests("GET", "/manifests/"))) == (True, first)
    kernel.run(f"%%container --pull always {box}\ntrue\n")
    assert len(registry.requests("GET", "/manifests/")) > first


def test_a_session_pulls_its_image(kernel: Kernel, box: Box) -> None:
    assert text(kernel.run(f"%%container --session pulled {box}\necho here\n")) == "here\n"
    kernel.run("%container reset pulled")


@pytest.mark.parametrize("verb", ["pull -q", "pull", "run --rm", "run --rm -q", "create"])
def test_verbs_show_a_pull_unless_they_are_quiet(kernel: Kernel, registry: BadRegistry, box: Box, verb: str) -> None:
    line = f"%container {verb} {box}" + (" true" if "run" in verb else "")
    if "-q" in verb:
        outputs = kernel.run(line)
        assert "Pull" not in str(outputs)
    else:
        outputs = run_held(kernel, registry, box, line)
        assert last_display(outputs)["data"]["text/plain"].startswith(f"✓ Pulled {box} · 2 layers · ")
    assert not [each for each in outputs if each["type"] == "error"]
    kernel.run("%container container prune -f")


def test_a_build_shows_the_base_that_it_brings(kernel: Kernel, registry: BadRegistry, box: Box) -> None:
    outputs = run_held(kernel, registry, box, f"%%dockerfile -t localhost/of-pulled\nFROM {box}\nRUN test -f /big\n")
    shown = last_display(outputs)["data"]["text/plain"].splitlines()
    assert shown[0].startswith("✓ localhost/of-pulled:latest · ")
    assert shown[1].strip().startswith(f"✓ Pulled {box} · 2 layers · ")
    assert len(shown) == 4, "then the two steps"


def test_a_pull_that_fails_is_an_error_of_a_few_lines(kernel: Kernel, registry: BadRegistry) -> None:
    error = kernel.error(f"%%container {registry.host}/team/nothing:1\ntrue\n")
    assert error["ename"] == "NotInRegistry"
    assert len(error["traceback"]) == 1
