"""Where something stands in a Dockerfile, and how to show it: lines, an arrow, a caret."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sandbox.errors import DockerfileError

_CONTEXT_LINES = 1
_LONGEST_SPAN = 12
_WIDEST = 160


class Span(msgspec.Struct, frozen=True):
    """Lines `first` to `last` of a Dockerfile, counted from 1, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"line {self.first}" if self.first == self.last else f"lines {self.first}-{self.last}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`did you mean RUN?` when one of the known words is close, else None."""
    by_folded = {name.casefold(): name for name in known}
    import difflib

    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f"did you mean {by_folded[close[0]]}?" if close else None


class SourceText(msgspec.Struct, frozen=True):
    """The lines of a Dockerfile (without their newline) under the name a person knows it by."""

    name: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, text: str, name: str) -> SourceText:
        """The lines of a text; a byte order mark and the last line's end are not part of any."""
        return cls(name, tuple(text.removeprefix("\ufeff").removesuffix("\n").split("\n")))

    def excerpt(self, span: Span, word: str | None = None) -> str:
        """The span with a line before and after it, `>` at its lines; with `word`, a caret under its first occurrence there."""
        first, last = max(1, span.first - _CONTEXT_LINES), min(len(self.lines), span.last + _CONTEXT_LINES)
        last = min(last, first + _LONGEST_SPAN)
        width = len(str(last))
        caret = self._find(span, word) if word is not None else None
        rows = []
        for number in range(first, last + 1):
            mark = ">" if span.first <= number <= span.last else " "
            column = caret[1] if caret is not None and caret[0] == number else None
            shown, shift = _clipped(_show(self.lines[number - 1]), column or 0)
            rows.append(f"{mark} {number:>{width}} | {shown}".rstrip())
            if column is not None:
                marks = "^" * min(max(1, len(word or "")), _WIDEST)
                rows.append(f"  {'':>{width}} | {'':>{column - shift}}{marks}"[: width + 5 + _WIDEST])
        return "\n".join(rows)

    def error(self, message: str, span: Span, *, word: str | None = None, hint: str | None = None) -> DockerfileError:
        """A DockerfileError that names the line and shows it, with a caret under `word` (empty: at the end of the line)."""
        number = self._find(span, word)[0] if word else span.first
        return DockerfileError(f"{self.name} line {number}: {message}", span=span, excerpt=self.excerpt(span, word), hint=hint)

    def _find(self, span: Span, word: str | None) -> tuple[int, int]:
        """Line and column of the word; the end of the span's first line when it is not there as written."""
        for number in range(span.first, min(span.last, len(self.lines)) + 1):
            line = _show(self.lines[number - 1])
            column = line.find(word) if word else -1
            if column >= 0 and (span.first == span.last or not line.lstrip().startswith("#")):
                return number, column
        return span.first, len(_show(self.lines[span.first - 1])) if self.lines else 0


def _clipped(line: str, column: int) -> tuple[str, int]:
    """A part of a very long line that holds the column, and how many columns the part is shifted."""
    if len(line) <= _WIDEST:
        return line, 0
    start = max(0, min(column - _WIDEST // 2, len(line) - _WIDEST + 2))
    head = "…" if start else ""
    tail = "…" if start + _WIDEST < len(line) else ""
    return head + line[start : start + _WIDEST - 2] + tail, start - len(head)


def _show(line: str) -> str:
    """A tab as one space, so that the caret stands where it should; other control characters visible."""
    return "".join(" " if c == "\t" else c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line.rstrip("\r"))
