"""Around the grammar library: text → its tree, with our words for its errors; the directives it reads and drops; ONBUILD's inside,
of which it reads neither flags nor heredocs."""

from __future__ import annotations

import re
from collections.abc import Collection

from e2b_dockerfile_utils import DockerfileAst, DockerfileSyntaxError, parse_dockerfile_ast

from sandbox.build.rules import CheckOptionError, CheckOptions, parse_check_options
from sandbox.build.source import SourceText, Span, did_you_mean
from sandbox.errors import DockerfileError

_ONBUILD = re.compile(r"^[ \t]*(ONBUILD)(?=\s)", re.IGNORECASE)
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_OUR_FRONTENDS = re.compile(r"(docker\.io/)?docker/dockerfile(-upstream)?(:[\w.-]+)?(@sha256:[0-9a-f]{64})?")
_LIBRARY_PREFIX = re.compile(r"^(Dockerfile parse error( on line \d+)?: )?(Syntax error - )?")


def source_of(text: str, name: str) -> SourceText:
    """The lines of a text under its name; DockerfileError for what is no text."""
    source = SourceText.of(text, name)
    for number, line in enumerate(source.lines, 1):
        if "\0" in line or (not line.isascii() and any("\ud800" <= c <= "\udfff" for c in line)):
            raise source.error("not text: it holds a NUL or broken UTF-8", Span(number, number), hint="save the file as UTF-8")
    return source


def check_options_of(source: SourceText, text: str | None) -> CheckOptions:
    """What a `# check=` directive says; DockerfileError at its line."""
    try:
        return parse_check_options(text or "")
    except CheckOptionError as err:
        number = next(number for number, line in enumerate(source.lines, 1) if (text or "") in line)
        raise source.error(str(err), Span(number, number), word=text, hint=err.hint) from None


def read_tree(text: str, source: SourceText, known: Collection[str]) -> DockerfileAst:
    """The library's tree of a text; DockerfileError. `known`: the instructions there are, for who misspelt one."""
    try:
        return parse_dockerfile_ast(text)
    except DockerfileSyntaxError as err:
        raise _explained(err, source, known) from None
    except (RecursionError, ValueError) as err:
        # Only a JSON form nested thousands of levels deep gets here: the library's JSON reader is recursive.
        deepest = max(range(len(source.lines)), key=lambda n: source.lines[n].count("["))
        reason = str(err) if isinstance(err, ValueError) else "nested too deeply"
        raise source.error(reason, Span(deepest + 1, deepest + 1), word="[") from None


def _explained(err: DockerfileSyntaxError, source: SourceText, known: Collection[str]) -> DockerfileError:
    """The library's error with our words: which word, what was expected, what was meant."""
    line = min(err.line or 1, len(source.lines))
    message = _LIBRARY_PREFIX.sub("", str(err), count=1)
    span = Span(line, line)
    if found := re.fullmatch(r"unknown instruction: (.*)", message, re.DOTALL):
        word = found[1]
        hint = did_you_mean(word, known) or "an instruction is one of " + " ".join(known)
        return source.error(f"unknown instruction {word}" if word else "expected an instruction", span, word=word, hint=hint)
    if found := re.search(r'can\'t find = in "(.*)"\. Must', message, re.DOTALL):
        return source.error(f"expected name=value, got {found[1]}", span, word=found[1], hint="quote a value that holds spaces")
    if found := re.fullmatch(r"(\w+) must have two arguments", message):
        return source.error(f"{found[1]}: expected name=value", span, word="")
    if message == "unterminated heredoc":
        return source.error("heredoc without an end", span, word="<<", hint="end it with its name alone on a line")
    if message.startswith("Only strings"):
        return source.error("expected only strings in the JSON list", span, word="[", hint='quote numbers too: ["sleep", "1"]')
    return source.error(message, span, word=_directive_value(source, line))


def _directive_value(source: SourceText, line: int) -> str | None:
    found = _DIRECTIVE.fullmatch(source.lines[line - 1].strip()) if source.lines else None
    return found[2] if found else None


def directives_of(source: SourceText) -> tuple[tuple[str, str], ...]:
    """The directives at the top, which the library reads and drops. Another frontend than docker's is refused."""
    found: dict[str, str] = {}
    for number, line in enumerate(source.lines, 1):
        if number == 1 and line.startswith("#!"):
            continue  # an executable Dockerfile; the escape directive does not count after it, in BuildKit neither
        match = _DIRECTIVE.fullmatch(line.strip())
        if not match or (name := match[1].lower()) not in ("syntax", "escape", "check"):
            break
        found.setdefault(name, match[2])
        if name == "syntax" and not _OUR_FRONTENDS.fullmatch(match[2].split(" ")[0]):
            raise source.error(
                f"syntax {match[2]}: not supported", Span(number, number), word=match[2], hint="only docker/dockerfile is built in"
            )
    return tuple(found.items())


def unwrap_onbuild(source: SourceText) -> tuple[str, frozenset[int]]:
    """Blank the word ONBUILD where it begins an instruction, so that the library parses the trigger with its flags and
    heredocs (of ONBUILD itself it reads neither). Where an instruction begins, only the library knows: ask it with the text so far."""
    lines = list(source.lines)
    starts: set[int] = set()
    for number, line in enumerate(source.lines, 1):
        match = _ONBUILD.match(line)
        if match and _begins_instruction(lines[:number], number):
            start, end = match.span(1)
            lines[number - 1] = line[:start] + " " * (end - start) + line[end:]
            starts.add(number)
    return "\n".join(lines), frozenset(starts)


def _begins_instruction(lines: list[str], number: int) -> bool:
    try:
        ast = parse_dockerfile_ast("\n".join(lines))
    except (ValueError, RecursionError):
        return False  # inside a heredoc, or broken before: the parse of the whole text will tell
    return bool(ast.instructions) and ast.instructions[-1].start_line == number
