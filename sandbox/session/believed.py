"""What a runner says, made believable: whoever speaks its protocol may be anybody. Figures are clamped, texts cut and freed of what
moves a terminal's cursor, values decoded without running anything."""

from __future__ import annotations

import base64
import re
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from sandbox.runtime.spec import Completed, Usage
from sandbox.session.channel import Frame
from sandbox.session.inside.sandbox_runner import objects
from sandbox.session.inside.sandbox_runner.frames import NotPossible

MOST_DISPLAYS = 1000
"""How many displays of one cell are shown."""
_MOST_BYTES, _BYTES_A_SECOND = 100 << 20, 10 << 20
"""Of displays: at once, and more by and by, so that a plot can be drawn anew for hours."""
_LONGEST_NAME, _LONGEST_TEXT, _MOST_LINES = 200, 20_000, 2000
LONGEST_PROMPT = 2000

Status = Literal["ok", "error", "exit", "object", "timeout", "died"]


class CellCode(msgspec.Struct, frozen=True):
    """What a cell asks for. `first_line`: the number its first line has in the notebook's cell. `inputs`: variables to set
    before it; `outputs`: variables to fetch after it. `pickle`/`trust`: let pickles in / out."""

    code: str
    first_line: int = 1
    inputs: Mapping[str, object] = msgspec.field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    pickle: bool = False
    trust: bool = False


class CellOutcome(msgspec.Struct, frozen=True):
    """How a cell ended: `error` of a Python error is (class, text), `traceback` its lines. `timeout`: interrupted after the cell's
    own time-out. `died`: the interpreter ended with it; `completed` says how the container did, when it did. `values`: the
    outputs asked for. `usage`: of a cell that others may follow; its peaks are those since the interpreter began."""

    status: Status
    exit_code: int = 0
    error: tuple[str, str] = ("", "")
    traceback: tuple[str, ...] = ()
    seconds: float = 0.0
    values: Mapping[str, object] = msgspec.field(default_factory=dict)
    completed: Completed | None = None
    usage: Usage = Usage()


class Allowance:
    """What one cell may display: so many, and so many bytes."""

    def __init__(self) -> None:
        self._count = self._size = 0
        self._began = time.monotonic()

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more is shown."""
        more = _BYTES_A_SECOND * (time.monotonic() - self._began)
        return self._count > MOST_DISPLAYS or self._size > _MOST_BYTES + more

    def take(self, data: Mapping[str, Any], *, update: bool) -> bool:
        """Count one more display; whether it may be shown."""
        self._count += not update
        self._size += sum(len(each) for each in data.values() if isinstance(each, str))
        return not self.is_used_up

    def clear(self) -> None:
        """There is room for as many again; what has been sent was sent."""
        self._count = 0


def text_of(value: object, longest: int = _LONGEST_TEXT) -> str:
    """A text of the runner's: cut in the middle, without control characters but line ends, tabs and colours."""
    text = value if isinstance(value, str) else ""
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest // 2) :]}"
    return _CONTROL.sub("", text)


_CONTROL = re.compile("\x1b(?!\\[[0-9;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


def outcome_of(message: Frame, buffers: Sequence[memoryview], cell: CellCode, *, elapsed: float) -> CellOutcome:
    """The runner's last frame, believed in nothing that matters: a cell took no longer than `elapsed` seconds."""
    status = message.get("status")
    lines = message.get("traceback")
    values, wrong = _values(message, buffers, cell) if status == "ok" else ({}, "")
    name = text_of(message.get("name"), _LONGEST_NAME).replace("\n", " ")
    return CellOutcome(
        status="object" if wrong else status if status in ("ok", "error", "exit", "object") else "died",
        exit_code=1 if wrong else _exit_code(message.get("exit")),
        error=("", wrong) if wrong else (name, text_of(message.get("value", message.get("error")))),
        traceback=_lines(lines) if isinstance(lines, list) else (),
        seconds=_seconds(message.get("seconds"), elapsed),
        values=values,
    )


def _exit_code(value: object) -> int:
    return value if type(value) is int and 0 <= value <= 255 else 1


def _seconds(value: object, elapsed: float) -> float:
    """What it says it took, or what it took as seen from here: a shell has no clock, a liar a wrong one."""
    return float(value) if isinstance(value, int | float) and 0 < value <= elapsed else elapsed


def _lines(lines: Sequence[object]) -> tuple[str, ...]:
    shown = [*lines[: _MOST_LINES // 2], "…", *lines[-(_MOST_LINES // 2) :]] if len(lines) > _MOST_LINES else lines
    kept, room = [], 1 << 20
    for line in shown:
        kept.append(text_of(line)[:room])
        room -= len(kept[-1])
    return tuple(kept)


def bundle_of(message: Frame, buffers: Sequence[memoryview]) -> dict[str, Any]:
    """A display's MIME bundle. Of a runner that has no JSON of its own it is one MIME type, its data the frame's buffer."""
    if "data" in message:
        return message["data"] if isinstance(message["data"], dict) else {}
    mime, data = text_of(message.get("mime", "text/plain"), _LONGEST_NAME), buffers[0] if buffers else memoryview(b"")
    is_text = mime.startswith("text/") or mime in ("image/svg+xml", "application/json")
    plain = {} if mime == "text/plain" else {"text/plain": f"<{mime}, {len(data)} bytes>"}
    return {mime: decoded(data) if is_text else base64.b64encode(data).decode(), **plain}


def decoded(data: memoryview) -> str:
    """A buffer as text."""
    return bytes(data).decode(errors="replace")


def _values(message: Frame, buffers: Sequence[memoryview], cell: CellCode) -> tuple[dict[str, object], str]:
    """The outputs, and what is wrong with them. They are data: no pickle without `trust`."""
    values: dict[str, object] = {}
    try:
        for about in message["out"] if cell.outputs else ():
            first, count = int(about["first"]), int(about["count"])
            if about["variable"] in cell.outputs:
                values[about["variable"]] = objects.decode(about, buffers[first : first + count], cell.trust)
    except NotPossible as err:
        return {}, text_of(str(err))
    except _DAMAGED as err:
        return {}, text_of(f"an output came damaged ({type(err).__name__}: {err})")
    missing = [name for name in cell.outputs if name not in values]
    return values, f"{missing[0]}: did not come" if missing else ""


_DAMAGED = (
    KeyError, IndexError, TypeError, ValueError, OSError, ArithmeticError, AttributeError, RecursionError, MemoryError, NotImplementedError,
    struct.error,
)  # fmt: skip
"""What decoding rubbish raises (pyarrow's errors are among them)."""
