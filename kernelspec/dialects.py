"""How each language of a runner is presented to front ends: `language_info`, and a runner's answers as the messages of Jupyter's protocol.

Pure tables and functions (jupyter_client, "Messaging in Jupyter"). To add a language: give it a runner (sandbox/session), add a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any  # the content of messages

import msgspec

from sandbox.errors import InvalidOption
from sandbox.session.channel import Frame
from sandbox.session.runners import RUNNERS, Runner, runner_for

Answer = tuple[Frame, list[memoryview]]
Content = dict[str, Any]
TYPED = "_jupyter_types_experimental"
"""The key of a completion reply's metadata under which front ends look for the kind of each match."""
_VERSION = re.compile(r"\d+(?:\.\d+)+")


class Dialect(msgspec.Struct, frozen=True):
    """One language. `info`: its language_info, without the version, which `program` with `version_flag` tells. `name`: what stands
    before the cursor and may be asked about, `after` what of it goes on behind. `wholeness` reads the runner's answer to `parse`."""

    runner: Runner
    programs: tuple[str, ...]
    info: Mapping[str, Any]
    version_flag: str
    name: re.Pattern[str]
    after: re.Pattern[str]
    wholeness: Callable[[Frame, str], tuple[str, str]]

    @property
    def language(self) -> str:
        """Its name, as kernelspecs and notebooks have it."""
        return str(self.info["name"])

    def language_info(self, told: str) -> Content:
        """`language_info` with the version out of what the program said of itself; empty when it says none."""
        found = _VERSION.search(told)
        return {**self.info, "version": found.group() if found else ""}

    def name_at(self, code: str, cursor: int) -> str:
        """The name at the cursor; of the call that is open there, when there is no name."""
        before, after = self.name.search(code[:cursor]), self.after.match(code[cursor:])
        return (before.group() if before else "") + (after.group() if after else "")

    def is_complete(self, answer: Answer | None) -> Content:
        """is_complete_reply."""
        if answer is None:
            return {"status": "unknown"}
        message, buffers = answer
        state, indent = self.wholeness(message, _text(buffers))
        return {"status": state, "indent": indent} if state == "incomplete" else {"status": state}


def completion(answer: Answer | None, cursor: int) -> Content:
    """complete_reply for a cursor at that character."""
    word, matches = _matches(answer) if answer else ("", [])
    start = cursor - len(word)
    typed = [{"start": start, "end": cursor, "text": text, "type": kind} for text, kind in matches]
    return {
        "status": "ok",
        "matches": [text for text, _ in matches],
        "cursor_start": start,
        "cursor_end": cursor,
        "metadata": {TYPED: typed} if any(kind for _, kind in matches) else {},
    }


def inspection(answer: Answer | None) -> Content:
    """inspect_reply."""
    message, buffers = answer or ({}, [])
    text = str(message.get("text") or _text(buffers)).rstrip()
    return {"status": "ok", "found": bool(text), "data": {"text/plain": text} if text else {}, "metadata": {}}


def _matches(answer: Answer) -> tuple[str, list[tuple[str, str]]]:
    """The word that is completed, and what it may become with its kind: JSON of some runners, lines of those without JSON."""
    message, buffers = answer
    if "matches" not in message:
        word, _, rest = _text(buffers).partition("\n")
        return word, [(line, "") for line in sorted(set(rest.split("\n"))) if line]
    found = message["matches"] if isinstance(message["matches"], list) else []
    pairs = [each if isinstance(each, list) and len(each) == 2 else [each, ""] for each in found]
    return str(message.get("word", "")), [(str(text), str(kind)) for text, kind in pairs]


def _text(buffers: Sequence[memoryview]) -> str:
    return bytes(buffers[0]).decode(errors="replace") if buffers else ""


def _told_state(message: Frame, text: str) -> tuple[str, str]:
    state = message.get("state")
    return (str(state) if state in ("complete", "incomplete", "invalid") else "unknown"), str(message.get("indent", ""))


_UNFINISHED = re.compile(
    r"unexpected end of file|unexpected EOF while looking|delimited by end-of-file|end of file unexpected|[Uu]nterminated quoted string"
    r"|EOF in backquote|unterminated here|Missing '[)}]+'"
)


def _shells_state(message: Frame, text: str) -> tuple[str, str]:
    """What a shell says of the grammar of a text that ends too early, and of one that is wrong."""
    if not text.strip():
        return "complete", ""
    return ("incomplete", "") if _UNFINISHED.search(text) else ("invalid", "")


_RUNNER = {runner.name: runner for runner in RUNNERS}
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*\.?(?=\(?\Z)")
_WORD = re.compile(r"\w*")
_SHELL = {"mimetype": "text/x-sh", "file_extension": ".sh", "codemirror_mode": "shell", "pygments_lexer": "bash"}
_SHELL_NAME = re.compile(r"[\w./@%+:-]+\Z")
_SHELL_REST = re.compile(r"[\w./@%+:-]*")

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        _RUNNER["python"],
        ("python3", "python", "pypy3"),
        {
            "name": "python",
            "mimetype": "text/x-python",
            "file_extension": ".py",
            "codemirror_mode": {"name": "ipython", "version": 3},
            "pygments_lexer": "ipython3",
            "nbconvert_exporter": "python",
        },
        "--version",
        _DOTTED,
        _WORD,
        _told_state,
    ),
    Dialect(
        _RUNNER["node"],
        ("node", "nodejs"),
        {
            "name": "javascript",
            "mimetype": "text/javascript",
            "file_extension": ".js",
            "codemirror_mode": "javascript",
            "pygments_lexer": "javascript",
        },
        "--version",
        re.compile(r"[^\W\d][\w$]*(?:\.[^\W\d][\w$]*)*\.?(?=\(?\Z)"),
        re.compile(r"[\w$]*"),
        _told_state,
    ),
    Dialect(_RUNNER["bash"], ("bash",), {"name": "bash", **_SHELL}, "--version", _SHELL_NAME, _SHELL_REST, _shells_state),
    Dialect(_RUNNER["sh"], ("sh",), {"name": "sh", **_SHELL}, "--help", _SHELL_NAME, _SHELL_REST, _shells_state),
)
_OTHER_NAMES = {"js": "javascript", "node": "javascript", "python3": "python", "shell": "sh"}


def is_known(language: str) -> bool:
    """Whether one of our runners speaks it."""
    return _OTHER_NAMES.get(language.lower(), language.lower()) in {each.language for each in DIALECTS} or runner_for(language) is not None


def choose_dialect(language: str, *, label: str | None, own: Sequence[str], find: Callable[[str], bool], image: str) -> tuple[Dialect, str]:
    """The dialect of an image's kernel and the program that speaks it; InvalidOption when there is none.

    Of the `language` that is asked for, else of the image's `label`, else of its `own` command when that is an interpreter and no shell,
    else the first that `find` finds.
    """
    if wanted := language or label or "":
        return _named(wanted, find, image)
    runner = runner_for(own[0]) if own else None
    if runner is not None and runner.name not in ("bash", "sh"):
        return next((each, own[0]) for each in DIALECTS if each.runner is runner)
    for dialect in DIALECTS:
        if program := next(filter(find, dialect.programs), None):
            return dialect, program
    hint = "say how its kernel is started with --kernel-cmd"
    raise InvalidOption(f"image {image}: has no Python, node, bash or sh to run cells", hint=hint)


def _named(wanted: str, find: Callable[[str], bool], image: str) -> tuple[Dialect, str]:
    name = _OTHER_NAMES.get(wanted.lower(), wanted.lower())
    runner = runner_for(wanted)
    dialect = next((each for each in DIALECTS if each.language == name or each.runner is runner), None)
    if dialect is None:
        known = ", ".join(each.language for each in DIALECTS)
        raise InvalidOption(f"language {wanted}: none of {known}", hint="put a Jupyter kernel for it into the image")
    programs = (wanted, *dialect.programs) if runner is not None else dialect.programs
    program = next(filter(find, programs), None)
    if program is None:
        raise InvalidOption(f"image {image}: has no {dialect.programs[0]}", hint="choose another --language")
    return dialect, program
