"""The command line as an ordinary user types it, without a privilege: build, run, exec, archives, and nothing left."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, packages_of

pytestmark = [requires("root", "userns", "overlay", "tool:busybox"), pytest.mark.xdist_group("ordinary user")]

Say = Callable[..., "subprocess.CompletedProcess[str]"]
FILE = "FROM box\nRUN echo built > /made; mkdir /d; echo x > /d/x\nCOPY note /note\nCMD cat /made /note\n"


@pytest.fixture(scope="module")
def say(ordinary_user: OrdinaryUser) -> Iterator[Say]:
    """`sandbox WORDS…` as that user, with busybox as the image `box`."""
    root = ordinary_user.home / "state"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        env = {"PYTHONPATH": str(packages_of(ordinary_user)), "SANDBOX_ROOT": str(root)}
        return ordinary_user.run([SYSTEM_PYTHON, "-m", "sandbox", *words], env=env)

    tree = ordinary_user.home / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(str(shutil.which("busybox")), tree / "bin/busybox")
    for name in ("sh", "cat", "mkdir", "sleep", "id", "ls", "true"):
        (tree / "bin" / name).symlink_to("busybox")
    archive = ordinary_user.home / "box.tar"
    subprocess.run(["tar", "-C", str(tree), "-cf", str(archive), "."], check=True)
    done = run("import", str(archive), "box")
    assert done.returncode == 0, done.stderr
    yield run
    assert run("ps", "-aq").stdout == ""
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_what_is_built_runs(say: Say, ordinary_user: OrdinaryUser) -> None:
    context = ordinary_user.home / "context"
    context.mkdir()
    (context / "Dockerfile").write_text(FILE)
    (context / "note").write_text("noted\n")
    built = say("build", "-t", "made", str(context))
    assert built.returncode == 0, built.stderr
    assert say("run", "--rm", "made").stdout == "built\nnoted\n"


def test_exec_runs_inside_as_its_root(say: Say) -> None:
    assert say("run", "-d", "--name", "sleeper", "box", "sleep", "1000").returncode == 0
    try:
        done = say("exec", "sleeper", "sh", "-c", "id -u; ls /; cat /proc/1/comm")
        assert done.stderr == ""
        assert done.stdout.startswith("0\nbin\n")
        assert "sandbox-init" in done.stdout
        assert say("exec", "sleeper", "sh", "-c", "exit 7").returncode == 7
    finally:
        removed = say("rm", "-f", "sleeper")
    assert removed.returncode == 0, removed.stderr


def test_archives_come_back(say: Say, ordinary_user: OrdinaryUser) -> None:
    archive = str(ordinary_user.home / "saved.tar")
    assert say("save", "-o", archive, "box").returncode == 0
    assert say("tag", "box", "kept").returncode == 0
    assert "box:latest" in say("load", "-i", archive).stdout
    assert say("run", "--rm", "box", "true").returncode == 0


def test_a_layer_keeps_the_owners_that_an_ordinary_user_cannot_give(say: Say, ordinary_user: OrdinaryUser) -> None:
    content = b"theirs\n"
    taken = io.BytesIO()
    with tarfile.open(fileobj=taken, mode="w") as tar:
        for name, uid, gid in (("mine", 0, 0), ("theirs", 33, 34)):
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid = len(content), uid, gid
            member.pax_headers["SCHILY.xattr.user.sandbox.owner"] = "1:1"  # somebody's forgery
            tar.addfile(member, io.BytesIO(content))
    archive, left = ordinary_user.home / "owners.tar", ordinary_user.home / "left.tar"
    archive.write_bytes(taken.getvalue())
    assert say("import", str(archive), "owners").returncode == 0
    assert say("save", "--format", "oci", "-o", str(left), "owners").returncode == 0
    found = {}
    with tarfile.open(left) as outer:
        for entry in outer:
            blob = outer.extractfile(entry)
            if blob is not None and (data := blob.read())[257:262] == b"ustar":
                with tarfile.open(fileobj=io.BytesIO(data)) as layer:
                    found.update({each.name: (each.uid, each.gid) for each in layer})
    assert (found["mine"], found["theirs"]) == ((0, 0), (33, 34))


def test_a_limit_that_cannot_be_enforced_is_an_error_until_one_says_so(say: Say) -> None:
    refused = say("run", "--rm", "-m", "64m", "box", "true")
    assert (refused.returncode, "not writable by uid" in refused.stderr) == (125, True)
    assert say("run", "--rm", "-m", "64m", "--allow-unenforced", "box", "true").returncode == 0


def test_the_doctor_says_what_an_ordinary_user_has(say: Say) -> None:
    done = say("doctor")
    assert "✓ overlay in a user namespace" in done.stdout
    assert "✓ subordinate ids" in done.stdout
    assert done.stderr == ""


def test_volumes_below_tmp_are_seen(say: Say) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # staging is mounted there
        Path(place).chmod(0o755)
        Path(place, "note").write_text("seen\n")
        assert say("run", "--rm", "-v", f"{place}:/v", "box", "cat", "/v/note").stdout == "seen\n"


EXECUTE = """
import nbclient, nbformat
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in ("x=5; id -u", "echo $x; exit 3")])
nbclient.NotebookClient(notebook, kernel_name="mine", timeout=30, allow_errors=True).execute()
for cell in notebook.cells:
    print([each.get("text") or each.evalue for each in cell.outputs])
"""


def test_kernel_of_an_image_without_ipykernel(say: Say, ordinary_user: OrdinaryUser, packages: Path) -> None:
    assert "the Sandbox kernel, with the image's sh" in say("kernel", "install", "box", "--name", "mine").stdout
    env = {"PYTHONPATH": str(packages), "SANDBOX_ROOT": str(ordinary_user.home / "state")}
    done = ordinary_user.run([SYSTEM_PYTHON, "-c", EXECUTE], env=env)
    assert done.stdout == "['0\\n']\n['5\\n', 'exit code 3']\n", done.stderr
