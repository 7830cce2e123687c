"""`sandbox run` and the helper that it begins with: a fork of itself where nobody inside could reach its interpreter, else another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.attacks import OVERWRITE
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]
IMAGE = "localhost/python"
SECRET = {"CANARY_SECRET": "sings-on-the-host"}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path, python_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("comeup") / "root", (busybox_tar, "box")) as made:
        made.ok("load", "-i", str(python_tar))
        yield made


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@requires("root")
@pytest.mark.parametrize("userns", ["private", "host"])
def test_neither_init_nor_supervisor_show_the_callers_environment(sandbox: CommandLine, userns: str) -> None:
    name = f"env-{userns}"
    flags = ["--userns", "host"] if userns == "host" else []
    sandbox.ok("run", "-d", "--name", name, *flags, "box", "sleep", "1000", env=SECRET)
    (facts,) = sandbox.json("inspect", name)
    init = facts["State"]["Pid"]
    held = [environment_of(pid) for pid in (init, parent_of(init))]
    exe = os.statvfs(f"/proc/{parent_of(init)}/exe").f_flag
    sandbox.ok("rm", "-f", name)
    assert all(b"sings" not in text for text in held)
    assert bool(exe & os.ST_RDONLY) == (userns == "host"), "where root inside is the host's, it runs from a read-only mount"


def test_an_environment_would_be_seen() -> None:
    argv = ["sh", "-c", "echo up; read -r line"]
    with subprocess.Popen(argv, env={**os.environ, **SECRET}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        seen = environment_of(process.pid)
        process.kill()
    assert b"sings" in seen


def test_a_program_has_three_descriptors_whatever_we_were_given(sandbox: CommandLine) -> None:
    leaked = [os.open("/", os.O_RDONLY) for _ in range(3)]
    try:
        argv = sandbox.argv("run", "--rm", "box", "sh", "-c", "echo /proc/self/fd/*")
        done = subprocess.run(argv, pass_fds=leaked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    finally:
        for fd in leaked:
            os.close(fd)
    assert {os.path.basename(path) for path in done.stdout.split()} <= {"0", "1", "2", "3"}, "3 is the shell's own look"


def test_a_container_in_the_background_holds_nothing_of_ours(sandbox: CommandLine) -> None:
    """A pipe's reader sees its end when the command is over, though the container goes on."""
    done = sandbox.ok("run", "-d", "--name", "held", "box", "sleep", "1000")
    assert len(done.out.strip()) == 64
    sandbox.ok("rm", "-f", "held")


@pytest.mark.parametrize("flags", [(), pytest.param(("--userns", "host"), marks=requires("root"))])
def test_our_interpreter_cannot_be_changed_from_inside(sandbox: CommandLine, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """CVE-2019-5736, against the command: a Python of its own, which for an ordinary user is that user's."""
    subprocess.run([sys.executable, "-m", "venv", "--copies", "--without-pip", tmp_path / "venv"], check=True)
    victim = Path(os.path.realpath(tmp_path / "venv/bin/python"))
    (tmp_path / "attack").write_text(OVERWRITE)
    (tmp_path / "attack").chmod(0o755)
    before = (victim.stat().st_mode, victim.stat().st_mtime_ns, victim.read_bytes())
    packages = ":".join(path for path in sys.path if path)
    home = sandbox.ok("run", "--rm", IMAGE, "python3", "-c", "import sys; print(sys.base_prefix)").out.strip()
    attacked = CommandLine(sandbox.root, python=str(victim))
    given = [*flags, "-e", f"PYTHONHOME={home}", "-v", f"{tmp_path / 'attack'}:/attack:ro"]  # so that it finds its library inside
    done = attacked("run", "--rm", *given, IMAGE, "/attack", env={"PYTHONPATH": packages})
    assert (victim.stat().st_mode, victim.stat().st_mtime_ns, victim.read_bytes()) == before
    said = done.out.splitlines()
    assert len(said) == 3, done
    if os.geteuid() == 0:
        assert "done" not in said
    else:  # a sealed copy in memory, which is the user's: others can run it, but not write to it
        assert said[-1] == "Text file busy"


@requires("root")
@pytest.mark.parametrize("words", [("run", "--rm"), ("container", "run", "--rm")])
def test_what_is_plain_is_read_without_click(sandbox: CommandLine, words: tuple[str, ...]) -> None:
    argv = sandbox.argv(*words, "-m", "64m", "--network", "none", "-e", "A=1", "box", "sh", "-c", "echo $A")
    done = subprocess.run([argv[0], "-X", "importtime", *argv[1:]], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert done.stdout == "1\n"
    slow = {"click", "inspect", "uuid", "decimal", "hashlib", "ipaddress", "asyncio", "tarfile", "subprocess"}
    assert imported & slow == set()
    assert {"msgspec", "sqlite3"} <= imported, "it sees what is imported"


def test_it_is_a_whole_run(sandbox: CommandLine) -> None:
    done = sandbox("run", "--name", "whole", "-e", "A=1", "-w", "/tmp", "box", "sh", "-c", "echo $A; pwd; echo err >&2; exit 7")
    assert (done.status, done.out, done.err) == (7, "1\n/tmp\n", "err\n")
    (facts,) = json.loads(sandbox.ok("inspect", "whole").out)
    assert facts["Config"]["WorkingDir"] == "/tmp"
    sandbox.ok("rm", "whole")
