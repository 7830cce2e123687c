"""What must hold of any text given to the parser; used by the property tests and the fuzz target alike."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox.build.dockerfile import Dockerfile, parse
from sandbox.build.printing import to_text
from sandbox.errors import DockerfileError

_TEXTS = ("span", "text", "trigger_text")


def meaning(value: Any) -> Any:  # Any: structures, tuples and what is in them
    """A parsed value without where it stood and how it was written."""
    if isinstance(value, msgspec.Struct):
        fields = {name: meaning(getattr(value, name)) for name in value.__struct_fields__ if name not in _TEXTS}
        return type(value).__name__, fields
    return tuple(map(meaning, value)) if isinstance(value, tuple) else value


def check_text(text: str) -> Dockerfile | None:
    """Assert: `text` parses or is a DockerfileError in one line; printed and parsed again it means the same; printing is stable.
    Returns what was parsed."""
    try:
        parsed = parse(text)
    except DockerfileError as err:
        assert str(err)
        assert "\n" not in str(err)
        return None
    last = 0
    for instruction in parsed.instructions:
        assert last < instruction.span.first <= instruction.span.last <= len(parsed.source.lines)
        last = instruction.span.last
    printed = to_text(parsed)
    again = parse(printed)
    assert meaning(again.instructions) == meaning(parsed.instructions), printed
    assert to_text(again) == printed
    return parsed
