"""Tab in our cells: flags, image and container names, verbs, Dockerfile instructions. The rows of `cells` are the only list of flags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
from IPython.core.completer import CompletionContext, MatcherAPIv2, SimpleCompletion, SimpleMatcherResult, context_matcher

from magics.build_cells import BUILD_ROWS, INSTALL_ROWS, INSTALLERS
from magics.cells import EXEC_ROWS, RUN_ROWS
from sandbox.options import BUILD, RUN, Option

INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_OF_IMAGES = ("run", "create", "rmi", "tag", "history", "save", "push")
_OF_CONTAINERS = ("logs", "stop", "kill", "rm", "wait", "exec", "top", "stats", "cp", "diff", "commit", "start", "inspect")
_FLAGS = {"run": RUN, "create": RUN, "build": BUILD}


class Names(msgspec.Struct, frozen=True):
    """What there is to name, asked for only when it is needed."""

    images: Callable[[], Iterable[str]]
    containers: Callable[[], Iterable[str]]
    verbs: Callable[[], Iterable[str]]


class Offer(msgspec.Struct, frozen=True):
    """What may stand at the cursor: `fragment` is what is there already."""

    fragment: str
    kind: str
    texts: tuple[str, ...]


def offer(text: str, line: int, column: int, names: Names) -> Offer | None:
    """What to offer at this place of a cell; None when the cell is none of ours, or Python's own completion knows better."""
    lines = text.split("\n")
    before = lines[line][:column]
    fragment = "" if not before or before[-1].isspace() else before.split()[-1]
    words = before[: len(before) - len(fragment)].split()
    magic = lines[0].split(None, 1)[0] if lines[0].strip() else ""
    if line == 0 and magic in _IN_LINE and words:
        return _IN_LINE[magic](words[1:], fragment, names)
    if line > 0 and magic == "%%dockerfile":
        return _in_dockerfile(words, fragment, lines[1:line], names)
    if words and words[0].startswith("%") and words[0] in _IN_LINE and not magic.startswith("%%"):
        return _IN_LINE[words[0]](words[1:], fragment, names)
    return None


def _in_build(words: Sequence[str], fragment: str, names: Names) -> Offer | None:
    return _flags(BUILD_ROWS, fragment) if fragment.startswith("-") else None


def _in_run(words: Sequence[str], fragment: str, names: Names) -> Offer | None:
    if words[:1] == ["exec"]:
        return _positional(EXEC_ROWS, words[1:], fragment, "container", names.containers)
    found = _positional(RUN_ROWS, words, fragment, "image", names.images)
    if found and found.kind == "image" and not words and "exec".startswith(fragment):
        return Offer(found.fragment, found.kind, (*found.texts, "exec"))
    return found


def _in_verb(words: Sequence[str], fragment: str, names: Names) -> Offer | None:
    if not words:
        return None if fragment.startswith("-") else Offer(fragment, "verb", _starting(names.verbs(), fragment))
    rows = _FLAGS.get(words[0], ())
    if words[0] in _OF_CONTAINERS:
        return _positional(rows, words[1:], fragment, "container", names.containers)
    if words[0] in _OF_IMAGES:
        return _positional(rows, words[1:], fragment, "image", names.images)
    return _flags(rows, fragment) if fragment.startswith("-") else None


def _in_install(words: Sequence[str], fragment: str, names: Names) -> Offer | None:
    return _positional(INSTALL_ROWS, words, fragment, "package manager", lambda: INSTALLERS)


_IN_LINE: dict[str, Callable[[Sequence[str], str, Names], Offer | None]] = {
    "%%dockerfile": _in_build,
    "%%container": _in_run,
    "%%sandbox": _in_run,
    "%container": _in_verb,
    "%install": _in_install,
    "%%install": _in_install,
    "%dockerfile": lambda words, fragment, names: None if words else Offer(fragment, "verb", _starting(("export", "import"), fragment)),
}


def _in_dockerfile(words: Sequence[str], fragment: str, earlier: Sequence[str], names: Names) -> Offer | None:
    if not words:
        upper = fragment.upper()
        return Offer(fragment, "instruction", tuple(f"{name} " for name in INSTRUCTIONS if name.startswith(upper)))
    stages = tuple(
        each[-1] for line in earlier if len(each := line.split()) >= 4 and each[0].upper() == "FROM" and each[-2].upper() == "AS"
    )
    if words[0].upper() == "FROM" and len(words) == 1:
        return Offer(fragment, "image", _starting([*names.images(), *stages, "scratch"], fragment))
    if words[0].upper() == "COPY" and fragment.startswith("--from="):
        return Offer(fragment, "stage", tuple(f"--from={name}" for name in _starting([*stages, *names.images()], fragment[7:])))
    return None


def _positional(rows: Sequence[Option], words: Sequence[str], fragment: str, kind: str, named: Callable[[], Iterable[str]]) -> Offer | None:
    """A flag, or the first word that is none; nothing after that, nor where a flag wants its value."""
    if _is_value(rows, words):
        return None
    if fragment.startswith("-"):
        return _flags(rows, fragment)
    return None if _has_positional(rows, words) else Offer(fragment, kind, _starting(named(), fragment))


def _takes_value(rows: Sequence[Option], word: str) -> bool:
    return any(word in row.names and not row.is_switch for row in rows)


def _is_value(rows: Sequence[Option], words: Sequence[str]) -> bool:
    return bool(words) and not _has_positional(rows, words) and _takes_value(rows, words[-1])


def _has_positional(rows: Sequence[Option], words: Sequence[str]) -> bool:
    pairs = zip(["", *words], words, strict=False)
    return any(not word.startswith("-") and not _takes_value(rows, before) for before, word in pairs)


def _flags(rows: Sequence[Option], fragment: str) -> Offer:
    return Offer(fragment, "flag", _starting((name for row in rows for name in row.names), fragment))


def _starting(texts: Iterable[str], fragment: str) -> tuple[str, ...]:
    return tuple(sorted({text for text in texts if text.startswith(fragment)}))


def make_matcher(names: Names) -> MatcherAPIv2:
    """The matcher IPython asks at every Tab; where it has an offer, Python's own matchers are left out."""

    @context_matcher(identifier="sandbox")
    def match(context: CompletionContext) -> SimpleMatcherResult:
        found = offer(context.full_text, context.cursor_line, context.cursor_position, names)
        if found is None:
            return {"completions": []}
        completions = [SimpleCompletion(text, type=found.kind) for text in found.texts]
        return {"completions": completions, "matched_fragment": found.fragment, "suppress": True, "ordered": True}

    return match
