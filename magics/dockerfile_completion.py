"""Tab inside a Dockerfile: instructions, the flags each takes, and the names that FROM and --from can mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from sandbox.cli.completing import Names

Found = tuple[str, Sequence[tuple[str, str]]]
"""What stands at the cursor, and what could: text and kind."""

_HEREDOC = re.compile(r"<<-?\s*[\"']?(\w+)[\"']?")
_STAGE = re.compile(r"\s*FROM\s+(?:--\S+\s+)*\S+\s+AS\s+(\S+)", re.IGNORECASE)
_MOUNT_KEYS = ("type=", "target=", "source=", "from=", "id=", "sharing=", "readonly", "required", "size=", "env=", "mode=", "uid=", "gid=")
_VALUES: dict[str, Callable[[Names, Sequence[str]], Iterable[str]]] = {
    "from": lambda names, stages: [*stages, *names.images()],
    "network": lambda names, stages: ("default", "none", "host"),
    "security": lambda names, stages: ("sandbox", "insecure"),
    "link": lambda names, stages: ("true", "false"),
}
"""What a flag `--NAME=` or a mount's key can be."""
_MOUNT_VALUES = {"type": ("bind", "cache", "tmpfs", "secret", "ssh"), "sharing": ("shared", "private", "locked")}


def in_dockerfile(earlier: Sequence[str], before: str, names: Names) -> Found | None:
    """What to offer after `before`, an instruction's text so far; `earlier` are the lines before it. Where nothing is known the word
    that stands there, since Python's names are of no use here; None without one."""
    fragment = "" if not before or before[-1].isspace() else before.split()[-1]
    found = None if _is_in_heredoc(earlier) else _in_instruction(fragment, earlier, before, names)
    return found or ((fragment, [(fragment, "text")]) if fragment else None)


def _in_instruction(fragment: str, earlier: Sequence[str], before: str, names: Names) -> Found | None:
    from sandbox.build.dockerfile import FLAGS

    name, *words = before[: len(before) - len(fragment)].split() or ("",)
    name = name.upper()
    if name == "ONBUILD":
        name, *words = words or ("",)
        name = name.upper()
    if not name:
        return fragment, [(f"{each} ", "instruction") for each in FLAGS if each.startswith(fragment.upper())]
    if fragment.startswith("-") and all(word.startswith("--") for word in words):
        return _flags(fragment, FLAGS.get(name, ()), earlier, names)
    if name == "FROM":
        return _from(fragment, [word for word in words if not word.startswith("--")], earlier, names)
    return None


def _is_in_heredoc(lines: Sequence[str]) -> bool:
    ends: list[str] = []
    for line in lines:
        if ends:
            ends = ends[1:] if line.strip() == ends[0] else ends
        else:
            ends = _HEREDOC.findall(line) if not line.lstrip().startswith("#") else []
    return bool(ends)


def _flags(fragment: str, flags: Sequence[str], earlier: Sequence[str], names: Names) -> Found | None:
    flag, equals, value = fragment.partition("=")
    if not equals:
        return fragment, [(f"{each}=", "flag") for each in flags if each.startswith(fragment)]
    if flag == "--mount":
        return _mount(value, earlier, names)
    known = _VALUES.get(flag.removeprefix("--"))
    return _starting(value, known(names, _stages(earlier))) if known and flag in flags else None


def _mount(text: str, earlier: Sequence[str], names: Names) -> Found | None:
    last = text.rpartition(",")[2]
    key, equals, value = last.partition("=")
    if not equals:
        return _starting(last, _MOUNT_KEYS)
    known = [*_stages(earlier), *names.images()] if key == "from" else _MOUNT_VALUES.get(key, ())
    return _starting(value, known) if known else None


def _from(fragment: str, words: Sequence[str], earlier: Sequence[str], names: Names) -> Found | None:
    if not words:
        return _starting(fragment, [*names.images(), *_stages(earlier), "scratch"])
    return _starting(fragment.upper(), ["AS"]) if len(words) == 1 else None


def _stages(lines: Sequence[str]) -> list[str]:
    return [match[1] for line in lines if (match := _STAGE.match(line))]


def _starting(fragment: str, texts: Iterable[str]) -> Found:
    return fragment, [(text, "text") for text in sorted(set(texts)) if text.startswith(fragment)]
