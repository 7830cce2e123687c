"""A small interpreter of classic BPF as seccomp uses it (Linux, Documentation/networking/filter.rst), and what a profile means."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any  # JSON

AUDIT = {"x86_64": 0xC000003E, "x32": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}


def run_filter(program: bytes, arch: int, number: int, arguments: Sequence[int] = (0,) * 6) -> int:
    """What seccomp answers (SECCOMP_RET_…) to this call. ValueError for a program Linux would not load."""
    code = [struct.unpack_from("HBBI", program, at) for at in range(0, len(program), 8)]
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments)
    accumulator, at = 0, 0
    while True:
        if at >= len(code):
            raise ValueError(f"runs past its end at {at}")
        operation, yes, no, operand = code[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x54:
            accumulator &= operand
        elif operation == 0x05:
            at += operand
        elif operation == 0x06:
            return int(operand)
        else:
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}[operation]
            at += yes if holds else no


_ANSWERS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_KILL_PROCESS": 0x80000000, "SCMP_ACT_LOG": 0x7FFC0000}


def meaning(profile: Mapping[str, Any], name: str, arguments: Sequence[int], caps: set[str], arch: str, kernel: tuple[int, int]) -> int:
    """What the profile's JSON says of a call it knows, read as docker reads it. `arch`: amd64 or arm64."""
    rules = [rule for rule in profile["syscalls"] if name in rule.get("names", []) and applies(rule, caps, arch, kernel)]
    rules.sort(key=lambda rule: bool(rule.get("args")))  # one without conditions speaks for every call
    for rule in rules:
        if all(_holds(argument, arguments) for argument in rule.get("args") or []):
            return _answer(rule["action"], rule.get("errnoRet"))
    return _answer(profile["defaultAction"], profile.get("defaultErrnoRet"))


def _answer(action: str, number: int | None) -> int:
    return _ANSWERS[action] | ((1 if number is None else number) if action == "SCMP_ACT_ERRNO" else 0)


def applies(rule: Mapping[str, Any], caps: set[str], arch: str, kernel: tuple[int, int]) -> bool:
    """Whether a rule counts for this container and host."""
    within, without = rule.get("includes") or {}, rule.get("excludes") or {}
    newer = tuple(int(part) for part in within.get("minKernel", "0.0").split("."))
    return (
        all(cap in caps for cap in within.get("caps", []))
        and (arch in within["arches"] if within.get("arches") else True)
        and kernel >= newer
        and not any(cap in caps for cap in without.get("caps", []))
        and arch not in without.get("arches", [])
    )


def _holds(argument: Mapping[str, Any], arguments: Sequence[int]) -> bool:
    given, value = arguments[argument["index"]], argument["value"]
    return bool(
        {
            "SCMP_CMP_EQ": given == value,
            "SCMP_CMP_NE": given != value,
            "SCMP_CMP_LT": given < value,
            "SCMP_CMP_LE": given <= value,
            "SCMP_CMP_GT": given > value,
            "SCMP_CMP_GE": given >= value,
            "SCMP_CMP_MASKED_EQ": given & value == argument.get("valueTwo", 0),
        }[argument["op"]]
    )
