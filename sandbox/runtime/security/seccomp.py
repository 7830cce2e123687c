"""docker's seccomp profiles (moby, docs/security/seccomp; the same file format) → a filter for this processor.

What a profile says depends on the container's capabilities, the processor and the Linux version.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec

from sandbox.errors import InvalidOption, Unsupported
from sandbox.runtime.security import bpf

ACTIONS = {
    "SCMP_ACT_ALLOW": bpf.ALLOW, "SCMP_ACT_LOG": bpf.LOG, "SCMP_ACT_TRACE": bpf.TRACE, "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_TRAP": bpf.TRAP, "SCMP_ACT_KILL": bpf.KILL_THREAD, "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
}  # fmt: skip
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}
"""uname's machine → the name in a profile's includes and excludes."""
_EPERM = 1


class Argument(msgspec.Struct, frozen=True, rename="camel"):
    """One comparison of a system call's argument."""

    index: int
    value: int
    op: str
    value_two: int = 0


class Filter(msgspec.Struct, frozen=True, rename="camel"):
    """When a rule applies (includes: all of it) or does not (excludes: any of it)."""

    caps: list[str] = []
    arches: list[str] = []
    min_kernel: str | None = None


class Syscall(msgspec.Struct, frozen=True, rename="camel"):
    """One rule."""

    action: str
    names: list[str] = []
    name: str = ""
    args: list[Argument] | None = None
    errno_ret: int | None = None
    includes: Filter | None = None
    excludes: Filter | None = None


class Architecture(msgspec.Struct, frozen=True, rename="camel"):
    """A processor and the others whose programs it runs."""

    architecture: str
    sub_architectures: list[str] | None = None


class Profile(msgspec.Struct, frozen=True, rename="camel"):
    """A profile as it is written; the runtime spec's `linux.seccomp` is one with `architectures`."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[Architecture] | None = None
    flags: list[str] | None = None
    listener_path: str = ""
    syscalls: list[Syscall] | None = None


_PROFILE = msgspec.json.Decoder(Profile)


def compiled(profile: bytes, capabilities: Sequence[str], machine: str, release: str) -> bytes:
    """The filter of a profile for this machine and release of uname(2). Raises as `parse_profile` and `resolve`."""
    return bpf.compile_policy(resolve(parse_profile(profile), capabilities, machine, release))


def parse_profile(text: bytes) -> Profile:
    """The profile; InvalidOption when it is not one."""
    try:
        return _PROFILE.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as err:
        raise InvalidOption(f"seccomp profile: {str(err).lower()}", hint="docker's JSON format, with defaultAction and syscalls") from err


def resolve(profile: Profile, capabilities: Sequence[str], machine: str, release: str) -> bpf.Policy:
    """What the profile says for these capabilities (without CAP_), uname machine and Linux release.

    Raises InvalidOption for what it cannot mean, Unsupported for what we do not offer.
    """
    if machine not in bpf.NATIVE:
        raise Unsupported(f"seccomp: {machine} is not known", feature="seccomp", hint="--security-opt seccomp=unconfined runs without it")
    if profile.listener_path or profile.flags:
        raise Unsupported("seccomp: listenerPath and flags are not offered", feature="seccomp")
    default = _action(profile.default_action, profile.default_errno_ret)
    held = {f"CAP_{name}" for name in capabilities}
    rules = [rule for call in profile.syscalls or () if _applies(call, held, _GO_NAMES[machine], release) for rule in _rules(call)]
    return bpf.Policy(default, _arches(profile, machine), tuple(rule for rule in rules if rule.action != default))


def _arches(profile: Profile, machine: str) -> tuple[str, ...]:
    native = bpf.NATIVE[machine]
    if profile.architectures and profile.arch_map:
        raise InvalidOption("seccomp profile: has both architectures and archMap")
    if profile.architectures:
        return tuple(dict.fromkeys([native, *(arch for arch in profile.architectures if arch in _RUN_BY[native])]))
    row = next((row for row in profile.arch_map or () if row.architecture == native), None)
    return (native, *(row.sub_architectures or ())) if row else (native,)


_RUN_BY = {
    "SCMP_ARCH_X86_64": {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"},
    "SCMP_ARCH_AARCH64": {"SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"},
}


def _applies(call: Syscall, held: set[str], arch: str, release: str) -> bool:
    """docker's rule: excluded by any one of its words, included only with all of them."""
    out, within = call.excludes, call.includes
    if out and (arch in out.arches or held & set(out.caps) or (out.min_kernel and _is_at_least(release, out.min_kernel))):
        return False
    if within is None:
        return True
    fits = (not within.arches or arch in within.arches) and set(within.caps) <= held
    return fits and (not within.min_kernel or _is_at_least(release, within.min_kernel))


def _is_at_least(release: str, wanted: str) -> bool:
    return _version(release) >= _version(wanted)


def _version(text: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if not match:
        raise InvalidOption(f"seccomp profile: {text!r} is not a Linux version")
    return int(match[1]), int(match[2])


def _rules(call: Syscall) -> Iterator[bpf.Rule]:
    """One rule; several where one argument is compared twice: runc and crun then take any of them as enough."""
    if call.name and call.names:
        raise InvalidOption("seccomp profile: a rule has both name and names")
    names, action = tuple(call.names or [call.name]), _action(call.action, call.errno_ret)
    conditions = tuple(_condition(argument) for argument in call.args or ())
    if len({condition.index for condition in conditions}) == len(conditions):
        yield bpf.Rule(names, action, conditions)
    else:
        yield from (bpf.Rule(names, action, (condition,)) for condition in conditions)


def _condition(argument: Argument) -> bpf.Condition:
    numbers = argument.value, argument.value_two
    if argument.op not in bpf.OPERATORS or not 0 <= argument.index <= 5 or not all(0 <= number < 1 << 64 for number in numbers):
        raise InvalidOption(f"seccomp profile: argument {argument.index} {argument.op} {argument.value} cannot be compared")
    return bpf.Condition(argument.index, argument.value, argument.op, argument.value_two)


def _action(name: str, number: int | None) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise Unsupported("seccomp: SCMP_ACT_NOTIFY is not offered", feature="seccomp")
    if name not in ACTIONS:
        raise InvalidOption(f"seccomp profile: action {name!r} is not known")
    if number is not None and not 0 <= number <= 0xFFFF:
        raise InvalidOption(f"seccomp profile: errnoRet {number} is out of range")
    base = ACTIONS[name]
    return base | (_EPERM if number is None else number) if base in (bpf.ERRNO, bpf.TRACE) else base
