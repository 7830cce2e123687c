"""A seccomp policy → classic BPF for one processor (seccomp(2), Documentation/userspace-api/seccomp_filter.rst). Pure.

Own compiler and not libseccomp: the host's libseccomp may be absent or older than the policy's system calls. The numbers of
an architecture become ranges of equal outcome and a binary search over them, so a call costs about eight comparisons
where a list of rules costs hundreds.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from sandbox.errors import InvalidOption, Unsupported

ALLOW, LOG, TRACE, ERRNO, TRAP, KILL_PROCESS, KILL_THREAD = (
    0x7FFF0000, 0x7FFC0000, 0x7FF00000, 0x00050000, 0x00030000, 0x80000000, 0x00000000,
)  # fmt: skip
"""SECCOMP_RET_…; the low 16 bits carry the errno of ERRNO."""
LENIENT = frozenset({ALLOW, LOG, TRACE})
_ENOSYS = 38
_FAMILIES: Mapping[str, tuple[str, int, int]] = {
    "SCMP_ARCH_X86_64": ("x86_64", 0xC000003E, 0),
    "SCMP_ARCH_X32": ("x32", 0xC000003E, 0x40000000),
    "SCMP_ARCH_X86": ("x86", 0x40000003, 0),
    "SCMP_ARCH_AARCH64": ("aarch64", 0xC00000B7, 0),
    "SCMP_ARCH_ARM": ("arm", 0x40000028, 0),
}
"""libseccomp's name → our table of numbers, the AUDIT_ARCH_… that Linux reports, what is added to the numbers."""
NATIVE: Mapping[str, str] = {"x86_64": "SCMP_ARCH_X86_64", "aarch64": "SCMP_ARCH_AARCH64"}
"""uname's machine → libseccomp's name."""
_ARM_PRIVATE = 0x0F0000
_X32_BIT = 0x40000000
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_LOAD, _JA, _JEQ, _JGT, _JGE, _AND, _RET = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_HALF = 0xFFFFFFFF

Instruction = tuple[int, int, int, int]
"""code, jump if true, jump if false, operand: struct sock_filter."""


class Condition(msgspec.Struct, frozen=True):
    """One comparison of an argument (64 bits, unsigned); `value_two` is what MASKED_EQ compares with after `& value`."""

    index: int
    value: int
    op: str
    value_two: int = 0


class Rule(msgspec.Struct, frozen=True):
    """What happens to these system calls when all conditions hold."""

    names: tuple[str, ...]
    action: int
    conditions: tuple[Condition, ...] = ()


class Policy(msgspec.Struct, frozen=True):
    """Everything a filter says. A call's first rule without condition decides, else its first whose conditions hold, else `default`."""

    default: int
    arches: tuple[str, ...]
    rules: tuple[Rule, ...]


Outcome = int | tuple[Rule, ...]


def compile_policy(policy: Policy) -> bytes:
    """The filter as an array of struct sock_filter. Calls of an architecture that is not in the policy end the process."""
    numbers: dict[str, dict[str, int]] = json.loads(Path(__file__).with_name("syscalls.json").read_text("ascii"))
    spaces: dict[int, dict[int, Outcome]] = {}
    for arch in policy.arches:
        if arch not in _FAMILIES:
            raise Unsupported(f"seccomp: architecture {arch} is not known", feature="seccomp")
        table, token, offset = _FAMILIES[arch]
        spaces.setdefault(token, {}).update(_outcomes(policy, numbers[table], offset))
    program: list[Instruction] = [(_LOAD, 0, 0, _ARCH)]
    for token, outcomes in spaces.items():
        block = [(_LOAD, 0, 0, _NUMBER), *_search(list(_ranges(policy, outcomes)), policy.default)]
        program += [(_JEQ, 1, 0, token), (_JA, 0, 0, len(block)), *block]
    program.append((_RET, 0, 0, KILL_PROCESS))
    if len(program) > _MOST_INSTRUCTIONS:
        raise InvalidOption(f"seccomp: the profile compiles to {len(program)} instructions, Linux takes {_MOST_INSTRUCTIONS}")
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _outcomes(policy: Policy, numbers: Mapping[str, int], offset: int) -> dict[int, Outcome]:
    """Number → what happens; names this architecture does not have are left out, as docker and libseccomp do."""
    rules: dict[int, list[Rule]] = {}
    for rule in policy.rules:
        for name in rule.names:
            if name in numbers:
                rules.setdefault(numbers[name] + offset, []).append(rule)
    return {number: _decide(found) for number, found in rules.items()}


def _decide(rules: Sequence[Rule]) -> Outcome:
    plain = next((rule for rule in rules if not rule.conditions), None)
    return plain.action if plain else tuple(rules)


def _ranges(policy: Policy, outcomes: Mapping[int, Outcome]) -> Iterator[tuple[int, Outcome]]:
    """(first number, outcome) of each run of numbers with one outcome, from 0 to the last number there can be."""
    points: dict[int, Outcome] = {0: policy.default}
    for number in sorted(outcomes):
        points[number] = outcomes[number]
        points.setdefault(number + 1, policy.default)
    if policy.default & 0xFFFF0000 not in LENIENT:
        points = _with_unknown(policy.default, points, outcomes)
    last: Outcome | None = None
    for number, outcome in sorted(points.items()):
        if outcome != last:
            yield number, outcome
        last = outcome


def _with_unknown(default: int, points: dict[int, Outcome], outcomes: Mapping[int, Outcome]) -> dict[int, Outcome]:
    """Calls newer than the newest the policy names are answered with ENOSYS, as runc does: C libraries then fall back
    to an older call, where an EPERM would be final. Spaces without any named call (x32, ARM's own) keep the default."""
    unknown = ERRNO | _ENOSYS
    for low, high in ((0, _ARM_PRIVATE), (_X32_BIT, 1 << 32)):
        known = [number for number in outcomes if low <= number < high]
        if known:
            points[max(known) + 1] = unknown
    has_private = any(_ARM_PRIVATE <= number < _X32_BIT for number in outcomes)
    return {_ARM_PRIVATE: default if has_private else unknown, _X32_BIT: default, **points}


def _search(ranges: Sequence[tuple[int, Outcome]], default: int) -> list[Instruction]:
    """Binary search; the accumulator holds the number."""
    if len(ranges) == 1:
        return _leaf(ranges[0][1], default)
    middle = len(ranges) // 2
    left, right = _search(ranges[:middle], default), _search(ranges[middle:], default)
    split = ranges[middle][0]
    if len(left) <= 255:
        return [(_JGE, len(left), 0, split), *left, *right]
    return [(_JGE, 0, 1, split), (_JA, 0, 0, len(left)), *left, *right]  # a conditional jump reaches 255 instructions


def _leaf(outcome: Outcome, default: int) -> list[Instruction]:
    if isinstance(outcome, int):
        return [(_RET, 0, 0, outcome)]
    return [*(instruction for rule in outcome for instruction in _rule(rule)), (_RET, 0, 0, default)]


_Symbolic = tuple[int, str, str, int]
"""An instruction whose jumps are "" (the next one), "yes" (the condition holds) or "no" (the rule does not apply)."""


def _rule(rule: Rule) -> list[Instruction]:
    """All conditions in turn, then the action; past its end when one does not hold."""
    blocks = [_condition(condition) for condition in rule.conditions]
    size = sum(len(block) for block in blocks) + 1
    made: list[Instruction] = []
    end = 0
    for block in blocks:
        end += len(block)
        for code, yes, no, operand in block:
            here = len(made) + 1
            target = {"": 0, "yes": end - here, "no": size - here}
            made.append((code, target[yes], target[no], operand))
    return [*made, (_RET, 0, 0, rule.action)]


def _condition(condition: Condition) -> list[_Symbolic]:
    """Compare both halves of an argument; seccomp_data is in the processor's order, and all we know are little-endian."""
    low = _ARGUMENTS + 8 * condition.index
    (value_high, value_low), (two_high, two_low) = divmod(condition.value, 1 << 32), divmod(condition.value_two, 1 << 32)
    load_high: _Symbolic = (_LOAD, "", "", low + 4)
    load_low: _Symbolic = (_LOAD, "", "", low)
    if condition.op == "SCMP_CMP_MASKED_EQ":
        high = [load_high, (_AND, "", "", value_high), (_JEQ, "", "no", two_high & value_high)]
        return [*high, load_low, (_AND, "", "", value_low), (_JEQ, "yes", "no", two_low & value_low)]
    if condition.op == "SCMP_CMP_EQ":
        return [load_high, (_JEQ, "", "no", value_high), load_low, (_JEQ, "yes", "no", value_low)]
    if condition.op == "SCMP_CMP_NE":
        return [load_high, (_JEQ, "", "yes", value_high), load_low, (_JEQ, "no", "yes", value_low)]
    code, above, below = _ORDER[condition.op]
    return [
        load_high, (_JGT, above, "", value_high), (_JEQ, "", below, value_high), load_low, (code, above, below, value_low),
    ]  # fmt: skip


_ORDER: Mapping[str, tuple[int, str, str]] = {
    "SCMP_CMP_GT": (_JGT, "yes", "no"),
    "SCMP_CMP_GE": (_JGE, "yes", "no"),
    "SCMP_CMP_LE": (_JGT, "no", "yes"),
    "SCMP_CMP_LT": (_JGE, "no", "yes"),
}
OPERATORS = frozenset({"SCMP_CMP_EQ", "SCMP_CMP_NE", "SCMP_CMP_MASKED_EQ", *_ORDER})
