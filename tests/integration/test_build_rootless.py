"""A build by a user without privileges, in a user namespace of one id."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import OrdinaryUser

pytestmark = requires("root", "overlay", "userns", "tool:busybox")

CODE = """
import os, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from sandbox.build.builder import StepOutput
from sandbox.image.owners import owner_of
from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox

root = Path(sys.argv[1])
runtime = Runtime(root / "store")
workshop = Workshop(root, runtime)
workshop.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP}, fill=fill_busybox)
workshop.file("f", "content")
image = workshop.build("FROM busybox\\nCOPY f /f\\nWORKDIR /x\\nRUN cat /f; id -u; echo a > y; rm /etc/group\\n")
print(b"".join(event.data for event in workshop.events if isinstance(event, StepOutput)).decode())
print([entry.name for entry in workshop.tree(image).scandir("/x")], workshop.tree(image).lookup("/etc/group"))
workshop.build("FROM busybox\\nCOPY f /f\\nWORKDIR /x\\nRUN cat /f; id -u; echo a > y; rm /etc/group\\n")
print(workshop.cached())
owned = workshop.build("FROM busybox\\nCOPY --chown=7:8 f /f\\n")
entry = workshop.tree(owned).lookup("/f")
print(*owner_of(os.fsencode(entry.source), entry.stat))
print(list((root / "store/drafts").iterdir()))
runtime.close()
"""


SYSTEM_PYTHON = "/usr/bin/python3"
LIBRARIES = ("e2b_dockerfile_utils", "msgspec", "docker_image", "regex")


@pytest.fixture
def sources(ordinary_user: OrdinaryUser) -> Path:
    """The engine and what it imports, where that user may read it; for the system's Python, which that user may run."""
    asked = [SYSTEM_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    if version != [str(part) for part in sys.version_info[:2]]:
        pytest.skip(f"{SYSTEM_PYTHON}: of another version than this Python, whose compiled libraries it is to load")
    copy = ordinary_user.home / "src"
    here = Path(__file__).parents[2]
    places = {name: here / name for name in ("sandbox", "tests/support")}
    for name in LIBRARIES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        places[name] = Path(spec.submodule_search_locations[0])
    for name, place in places.items():
        shutil.copytree(place, copy / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    return copy


def test_ordinary_user_builds(ordinary_user: OrdinaryUser, sources: Path) -> None:
    done = ordinary_user.run([SYSTEM_PYTHON, "-c", CODE, str(ordinary_user.home / "work"), str(sources)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "content0",
        "",
        "['y'] None",
        "[True, True, True]",
        "7 8",
        "[]",
    ]


SAME = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox

import os
root = Path(sys.argv[1])
runtime = Runtime(root / "store")
workshop = Workshop(root, runtime)
def fill(place):
    fill_busybox(place)
    for base, directories, files in os.walk(place):
        for name in (*directories, *files):
            os.utime(os.path.join(base, name), (5, 5), follow_symlinks=False)
workshop.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP}, fill=fill)
workshop.file("d/f", "content")
text = (
    "FROM busybox AS made\\nCOPY --chown=7:8 d /e\\n"
    "FROM busybox\\nCOPY d /d\\nCOPY --chown=7:8 d /e\\nWORKDIR /x\\n"
    "RUN cat /d/f > y; mkdir -p a/b; ln -s y z; rm /etc/group; chmod 4755 y\\nRUN true\\n"
    "COPY --from=made /e /g\\nCOPY d/f /e/new\\n"
)
image = workshop.build(text, build_args={"SOURCE_DATE_EPOCH": sys.argv[2]}, no_cache=True)
print(image.manifest.digest, len(image.diff_ids), *image.diff_ids)
runtime.close()
"""


def test_two_people_in_two_places_build_the_same_manifest(ordinary_user: OrdinaryUser, sources: Path, tmp_path: Path) -> None:
    """root and somebody without privileges; the oracle is another time, which gives another manifest."""

    def root_builds(place: str, epoch: str) -> list[str]:
        argv = [SYSTEM_PYTHON, "-c", SAME, str(tmp_path / place), epoch, str(sources)]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    done = ordinary_user.run([SYSTEM_PYTHON, "-c", SAME, str(ordinary_user.home / "same"), "1700000000", str(sources)])
    assert done.returncode == 0, done.stderr
    theirs = done.stdout.split()
    assert root_builds("one", "1700000000") == theirs
    assert theirs[1] == "7"
    assert root_builds("two", "1700000001") != theirs
