"""A structure with secrets in it, whose repr does not show them."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Guarded(msgspec.Struct, frozen=True):
    """Base of frozen structures that end up in tracebacks, logs and assertion messages: `hidden` names the fields left out there."""

    hidden: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in self.hidden)
        return f"{type(self).__name__}({shown})"
