"""The seccomp filter inside a container: calls that docker's policy forbids fail with EPERM; without it Linux gives another answer."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from sandbox.errors import InvalidOption, SetupFailed
from sandbox.options import RunOptions
from tests.support.host import requires

pytestmark = [
    pytest.mark.anybody,
    requires("userns", "overlay"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the probe's numbers are x86-64's"),
]

NEW_USER, EPERM, ENOSYS = 0x10000000, 1, 38
CALLS: dict[str, tuple[int, list[int]]] = {
    "mount": (165, [0, 0, 0, 0, 0]),
    "umount2": (166, [0, 0]),
    "open_tree": (428, [0, 0, 0]),
    "fsopen": (430, [0, 0]),
    "unshare of a user namespace": (272, [NEW_USER]),
    "setns": (308, [-1, 0]),
    "keyctl": (250, [0, 0, 0, 0, 0]),
    "add_key": (248, [0, 0, 0, 0, 0]),
    "request_key": (249, [0, 0, 0, 0]),
    "bpf": (321, [0, 0, 0]),
    "perf_event_open": (298, [0, 0, -1, -1, 0]),
    "userfaultfd": (323, [1]),
    "io_uring_setup": (425, [1, 0]),
    "personality": (135, [0x0400000]),
    "kexec_load": (246, [0, 0, 0, 0]),
    "init_module": (175, [0, 0, 0]),
    "reboot": (169, [0, 0, 0, 0]),
    "swapon": (167, [0, 0]),
    "ioperm": (173, [0, 1, 1]),
    "quotactl": (179, [0, 0, 0, 0]),
    "open_by_handle_at": (304, [-1, 0, 0]),
    "vhangup": (153, []),
    "settimeofday": (164, [0, 0]),
    "kcmp": (312, [1, 1, 0, 0, 0]),
    "pidfd_getfd": (438, [-1, -1, 0]),
    "move_pages": (279, [0, 0, 0, 0, 0, 0]),
    "socket of the kernel's crypto": (41, [38, 5, 0]),
    "socket of vsock": (41, [40, 1, 0]),
    "mount by its x32 number": (0x40000000 | 165, [0, 0, 0, 0, 0]),
    "ptrace by its x86-64 number in x32": (0x40000000 | 101, [0, 0, 0, 0]),
}
PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for name, (number, arguments) in json.loads(sys.argv[1]).items():
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    found[name] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, python_tar: Path) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("seccomp") / "engine") as made:
        made.load(python_tar)
        yield made
        for container in made.containers(all=True):
            container.remove(force=True)


def answers(engine: Engine, options: RunOptions, calls: dict[str, tuple[int, list[int]]] = CALLS) -> dict[str, int]:
    """errno of each call, 0 for success."""
    done = engine.run("localhost/python", ["python3", "-c", PROBE, json.dumps(calls)], options=options)
    assert done.exit_code == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_forbidden_calls_fail_with_eperm(engine: Engine) -> None:
    found = answers(engine, RunOptions(rm=True))
    assert {name: number for name, number in found.items() if number != EPERM} == {}


def test_without_the_filter_most_of_them_are_answered_otherwise(engine: Engine) -> None:
    """The twin: it is the filter that says no, not the lack of a capability. Some are refused by Linux in any case."""
    found = answers(engine, RunOptions(rm=True, security_opt=(("seccomp", "unconfined"),)))
    changed = {name for name, number in found.items() if number != EPERM}
    for name in ("unshare of a user namespace", "keyctl", "add_key", "io_uring_setup", "personality", "setns", "bpf", "userfaultfd"):
        assert name in changed
    assert found["unshare of a user namespace"] == 0
    assert found["personality"] == 0


def test_exec_is_filtered_too(engine: Engine) -> None:
    container = engine.start("localhost/python", ["python3", "-c", "import signal; signal.pause()"])
    done = container.exec(["python3", "-c", PROBE, json.dumps(CALLS)])
    assert {name: number for name, number in json.loads(done.stdout).items() if number != EPERM} == {}
    container.remove(force=True)


def test_calls_a_program_needs_work(engine: Engine) -> None:
    calls = {
        "getpid": (39, []),
        "clone3 falls back": (435, [0, 0]),
        "a call nobody knows yet": (999, []),
        "personality query": (135, [0xFFFFFFFF]),
    }
    found = answers(engine, RunOptions(rm=True), calls)
    assert found == {"getpid": 0, "clone3 falls back": ENOSYS, "a call nobody knows yet": ENOSYS, "personality query": 0}


def test_capability_opens_its_calls(engine: Engine) -> None:
    calls = {"unshare": (272, [0x04000000]), "settimeofday": (164, [0, 0]), "kcmp": (312, [1, 1, 0, 0, 0])}
    assert answers(engine, RunOptions(rm=True), calls) == {"unshare": EPERM, "settimeofday": EPERM, "kcmp": EPERM}
    assert answers(engine, RunOptions(rm=True, cap_add=("SYS_ADMIN",)), calls)["unshare"] == 0


def test_profile_of_the_users_is_taken(engine: Engine, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    rules = [{"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    found = answers(
        engine, RunOptions(rm=True, security_opt=(("seccomp", str(profile)),)), {"getpid": (39, []), "personality": (135, [0x0400000])}
    )
    assert found == {"getpid": 13, "personality": 0}


def test_bad_profile_is_refused_before_anything_is_made(engine: Engine, tmp_path: Path) -> None:
    for text in ("", "{}", '{"defaultAction": "x"}'):
        (tmp_path / "profile.json").write_text(text)
        with pytest.raises((InvalidOption, SetupFailed)):
            engine.run(
                "localhost/python", ["true"], options=RunOptions(rm=True, security_opt=(("seccomp", str(tmp_path / "profile.json")),))
            )
    assert engine.containers(all=True) == []


@pytest.mark.parametrize(("value", "shown"), [("", "1"), ("true", "1"), ("false", "0")])
def test_no_new_privileges_is_on_unless_turned_off(engine: Engine, value: str, shown: str) -> None:
    code = "print([line.split()[1] for line in open('/proc/self/status') if line.startswith(('NoNewPrivs', 'Seccomp:'))])"
    done = engine.run(
        "localhost/python", ["python3", "-c", code], options=RunOptions(rm=True, security_opt=(("no-new-privileges", value),))
    )
    assert done.stdout.decode() == f"['{shown}', '2']\n"


def test_filter_is_kept_below_the_root(engine: Engine) -> None:
    engine.run("localhost/python", ["python3", "-c", ""])
    kept = sorted((engine.root / "seccomp").iterdir())
    assert kept
    before = [os.stat(path).st_mtime_ns for path in kept]
    engine.run("localhost/python", ["python3", "-c", ""])
    assert [os.stat(path).st_mtime_ns for path in kept] == before
