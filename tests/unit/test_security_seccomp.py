"""Profiles compiled to BPF: an interpreter runs the filter, and every answer is compared with what the JSON says."""

from __future__ import annotations

import ctypes
import json
import random
import struct
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import InvalidOption, Unsupported
from sandbox.runtime.security import bpf, seccomp
from sandbox.runtime.security.capabilities import DEFAULT_CAPABILITIES
from sandbox.runtime.security.filters import Filters, default_profile
from tests.support.bpf_interpreter import AUDIT, applies, meaning, run_filter

ALLOW, ENOSYS, KILL = 0x7FFF0000, 0x00050026, 0x80000000
NUMBERS: dict[str, dict[str, int]] = json.loads(resources.files("sandbox.runtime.security").joinpath("syscalls.json").read_text())
DEFAULT = list(DEFAULT_CAPABILITIES)
SPACES = {"x86_64": (("x86_64", 0), ("x86", 0), ("x32", 0x40000000)), "aarch64": (("aarch64", 0), ("arm", 0))}
GO = {"x86_64": "amd64", "aarch64": "arm64"}


def compiled(profile: dict[str, Any] | bytes, capabilities: list[str] = DEFAULT, machine: str = "x86_64", release: str = "6.18.0") -> bytes:
    text = profile if isinstance(profile, bytes) else json.dumps(profile).encode()
    return seccomp.compiled(text, capabilities, machine, release)


def arguments_for(profile: dict[str, Any], name: str, pick: random.Random) -> list[list[int]]:
    """Values at, around and far from every number the profile compares with, also in the high half."""
    values = {0, (1 << 64) - 1}
    for rule in profile["syscalls"]:
        if name in rule.get("names", []):
            for argument in rule.get("args") or []:
                for value in (argument["value"], argument.get("valueTwo", 0)):
                    values |= {value, value + 1, value - 1, value ^ (1 << 40), value | (1 << 32), value & -value}
    values = {value & ((1 << 64) - 1) for value in values}
    few = sorted(values)
    if len(few) == 2:
        return [[0] * 6]
    return [[value, *(pick.choice(few) for _ in range(5))] for value in few] + [[pick.choice(few) for _ in range(6)] for _ in range(4)]


def disagreements(profile: dict[str, Any], program: bytes, capabilities: list[str], machine: str, release: tuple[int, int]) -> list[str]:
    """Every call of every architecture for which filter and JSON differ."""
    pick, caps, found = random.Random(7), {f"CAP_{name}" for name in capabilities}, []
    for table, offset in SPACES[machine]:
        rules = [rule for rule in profile["syscalls"] if applies(rule, caps, GO[machine], release)]
        newest = max(NUMBERS[table][n] for r in rules for n in r["names"] if NUMBERS[table].get(n, 1 << 20) < 0xF0000)
        names: dict[int, list[str]] = {}
        for name, number in NUMBERS[table].items():
            names.setdefault(number, []).append(name)
        for name, number in NUMBERS[table].items():
            alike = names[number]
            for arguments in arguments_for(profile, name, pick):
                says = {meaning(profile, other, arguments, caps, GO[machine], release) for other in alike}
                expected = ENOSYS if newest < number < 0xF0000 else max(says)
                answer = run_filter(program, AUDIT[table], number + offset, arguments)
                if answer != expected:
                    found.append(f"{table} {name}{arguments}: {answer:#x}, not {expected:#x}")
    return found


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("capabilities", [[], DEFAULT, [*DEFAULT, "SYS_ADMIN"], ["SYS_PTRACE", "BPF", "SYS_TIME", "SYSLOG"]])
def test_default_policy_means_what_its_json_says(machine: str, capabilities: list[str]) -> None:
    profile = json.loads(default_profile())
    program = compiled(default_profile(), capabilities, machine)
    assert disagreements(profile, program, capabilities, machine, (6, 18)) == []


def test_the_comparison_can_fail() -> None:
    profile = json.loads(default_profile())
    assert disagreements(profile, compiled(default_profile(), [*DEFAULT, "SYS_ADMIN"]), DEFAULT, "x86_64", (6, 18))
    assert disagreements(profile, compiled(default_profile()), DEFAULT, "x86_64", (4, 7))


@pytest.mark.parametrize("seed", range(8))
def test_made_up_profiles_mean_what_their_json_says(seed: int) -> None:
    pick = random.Random(seed)
    names = pick.sample(sorted(NUMBERS["x86_64"]), 30)
    profile: dict[str, Any] = {
        "defaultAction": pick.choice(["SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS"]),
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
        "syscalls": [made_up_rule(pick, names) for _ in range(25)],
    }
    assert disagreements(profile, compiled(profile), DEFAULT, "x86_64", (6, 18)) == []


def made_up_rule(pick: random.Random, names: list[str]) -> dict[str, Any]:
    numbers = [0, 1, 5, 0xFFFFFFFF, 1 << 32, (1 << 40) + 3, (1 << 64) - 1]
    indexes = pick.sample(range(6), pick.choice([0, 0, 1, 2, 6]))
    args = [{"index": index, "value": pick.choice(numbers), "valueTwo": 0, "op": pick.choice(sorted(bpf.OPERATORS))} for index in indexes]
    rule: dict[str, Any] = {"names": pick.sample(names, pick.randint(1, 5)), "action": "SCMP_ACT_ALLOW", "args": args}
    return {**rule, **pick.choice([{}, {"includes": {"caps": ["CAP_CHOWN"]}}, {"excludes": {"caps": ["CAP_CHOWN"], "arches": ["arm"]}}])}


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("read", [0] * 6, ALLOW),
        ("mount", [0] * 6, 0x00050001),
        ("keyctl", [0] * 6, 0x00050001),
        ("io_uring_setup", [0] * 6, 0x00050001),
        ("clone3", [0] * 6, ENOSYS),
        ("clone", [0x11, 0, 0, 0, 0, 0], ALLOW),
        ("clone", [0x10000000, 0, 0, 0, 0, 0], 0x00050001),
        ("socket", [2, 0, 0, 0, 0, 0], ALLOW),
        ("socket", [38, 0, 0, 0, 0, 0], 0x00050001),
        ("socket", [40, 0, 0, 0, 0, 0], 0x00050001),
        ("personality", [8, 0, 0, 0, 0, 0], ALLOW),
        ("personality", [0x0400000, 0, 0, 0, 0, 0], 0x00050001),
        ("ptrace", [0] * 6, ALLOW),
    ],
)
def test_default_policy_in_words(name: str, arguments: list[int], answer: int) -> None:
    assert run_filter(compiled(default_profile()), AUDIT["x86_64"], NUMBERS["x86_64"][name], arguments) == answer


@pytest.mark.parametrize("number", [470, 5000, 0x3FFFFFFF])
def test_call_newer_than_the_policy_is_not_there_rather_than_forbidden(number: int) -> None:
    assert run_filter(compiled(default_profile()), AUDIT["x86_64"], number) == ENOSYS


def test_call_of_a_foreign_processor_ends_the_process() -> None:
    program = compiled(default_profile())
    assert run_filter(program, AUDIT["aarch64"], 63) == KILL


def test_x32_without_a_place_in_the_profile_is_refused() -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }
    program = compiled(profile)
    assert run_filter(program, AUDIT["x86_64"], 0) == ALLOW
    assert run_filter(program, AUDIT["x86_64"], 0x40000000) == 0x00050001
    assert run_filter(program, AUDIT["x86"], 3) == KILL


def test_two_comparisons_of_one_argument_are_alternatives() -> None:
    args = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 7)]
    program = compiled({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": args}]})
    assert [run_filter(program, AUDIT["x86_64"], 0, [value] + [0] * 5) for value in (1, 7, 3)] == [ALLOW, ALLOW, 0x00050001]


def test_policy_that_allows_by_default_leaves_unknown_calls_alone() -> None:
    program = compiled({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]})
    assert run_filter(program, AUDIT["x86_64"], 83) == 0x0005000D
    assert run_filter(program, AUDIT["x86_64"], 9999) == ALLOW


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_goes_forward_to_an_instruction(machine: str) -> None:
    """What Linux checks of a filter (bpf_check_classic); the last instruction returns."""
    program = compiled(default_profile(), machine=machine)
    code = list(struct.iter_unpack("HBBI", program))
    assert code[-1][0] == 0x06
    for at, (operation, yes, no, operand) in enumerate(code):
        assert at + 1 + (operand if operation == 0x05 else max(yes, no)) < len(code) or operation == 0x06


@pytest.mark.parametrize(
    "profile",
    [
        b"{",
        b"[]",
        b"\xff",
        {"defaultAction": "SCMP_ACT_NONSENSE"},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "x"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "name": "b", "action": "SCMP_ACT_ALLOW"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"], "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000},
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}],
        },
    ],
)
def test_profile_that_cannot_be_meant_is_refused(profile: dict[str, Any] | bytes) -> None:
    with pytest.raises(InvalidOption, match="seccomp profile"):
        compiled(profile)


@pytest.mark.parametrize(
    "profile",
    [{"defaultAction": "SCMP_ACT_NOTIFY"}, {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}],
)
def test_what_is_not_offered_is_said(profile: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        compiled(profile)
    with pytest.raises(Unsupported, match="riscv64"):
        compiled(default_profile(), machine="riscv64")


def test_numbers_are_libseccomps() -> None:
    """A second source for the tables: every name the host's libseccomp knows has its number there."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("no libseccomp on this host")
    tokens = {"x86_64": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
    different = []
    for table, token in tokens.items():
        for name, number in NUMBERS[table].items():
            known = library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(token), name.encode())
            if known >= 0 and known != number:
                different.append((table, name, number, known))
    assert different == []
    assert library.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(tokens["x86_64"]), b"read") == 0


def test_filter_is_compiled_once_and_kept(tmp_path: Path) -> None:
    filters = Filters(tmp_path / "cache")
    first = filters.filter_for(default_profile(), DEFAULT)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == first
    kept.write_bytes(b"kept")
    assert filters.filter_for(default_profile(), DEFAULT[::-1]) == b"kept"
    assert filters.filter_for(default_profile(), [*DEFAULT, "SYS_ADMIN"]) != b"kept"
    assert len(list((tmp_path / "cache").iterdir())) == 2
