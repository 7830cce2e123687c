"""A parsed Dockerfile as text a person can read and review: what the golden files under tests/golden/build hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from sandbox.build.dockerfile import Dockerfile, parse
from sandbox.errors import DockerfileError


def render(text: str) -> str:
    """The dump of a Dockerfile, or its error as a person sees it."""
    try:
        return _dump(parse(text))
    except DockerfileError as err:
        hint = f"hint: {err.hint}\n" if err.hint else ""
        return f"error: {err}\n{err.excerpt}\n{hint}"


def _dump(parsed: Dockerfile) -> str:
    lines = [f"directive {name}: {value}" for name, value in parsed.directives]
    lines += [f"warning line {line}: {message}" for message, line in parsed.warnings]
    for instruction in parsed.instructions:
        lines.append(f"{instruction.span}: {type(instruction).__name__.upper()}")
        lines += _fields(instruction, "  ")
    return "\n".join(lines) + "\n"


def _fields(value: Any, indent: str) -> list[str]:
    lines = []
    defaults = dict(zip(reversed(value.__struct_fields__), reversed(value.__struct_defaults__), strict=False))
    for name, item in asdict(value).items():
        if name == "span" or item in (None, (), 0) or (name in defaults and item == defaults[name]):
            continue
        if isinstance(item, Struct):
            lines += [f"{indent}{name}: {type(item).__name__}", *_fields(item, indent + "  ")]
        elif isinstance(item, tuple) and isinstance(item[0], Struct):
            for one in item:
                lines += [f"{indent}{name}: {type(one).__name__}", *_fields(one, indent + "  ")]
        elif isinstance(item, tuple):
            lines += [f"{indent}{name}:", *(f"{indent}  {_show(one)}" for one in item)]
        else:
            lines.append(f"{indent}{name}: {_show(item)}")
    return lines


def _show(item: object) -> str:
    if isinstance(item, tuple):
        return " = ".join(repr(part) for part in item)
    return repr(item)


def write_golden(root: Path) -> list[str]:
    """Write what is rendered now to every expected.txt below `root`, and name those that changed: to be reviewed like code."""
    changed = []
    for case in sorted(root.glob("*/*/Dockerfile")):
        expected, now = case.with_name("expected.txt"), render(case.read_bytes().decode())
        if not expected.exists() or expected.read_text(encoding="utf-8") != now:
            expected.write_text(now, encoding="utf-8")
            changed.append(f"{case.parent.parent.name}/{case.parent.name}")
    return changed


if __name__ == "__main__":
    print("\n".join(write_golden(Path(__file__).parents[1] / "golden" / "build")))  # noqa: T201 (a tool)
