"""--chmod: octal, or chmod(1)'s symbols."""

from __future__ import annotations

import re
from collections.abc import Callable

from sandbox.errors import BuildError

SetMode = Callable[[int, bool], int]
"""From the mode a file has, and whether it is a directory, to the one it gets."""

_OCTAL = re.compile(r"[0-7]{1,5}")
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*[ugo]?)")
_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_SHIFT = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 0o444, "w": 0o222, "x": 0o111, "s": 0o6000, "t": 0o1000}


def parse_mode(text: str) -> SetMode:
    """`755`, `0644`, `u=rwX,go=rX`, `+x`, `g=u`; raises BuildError."""
    if _OCTAL.fullmatch(text) and (value := int(text, 8)) <= 0o7777:
        return lambda _mode, _is_dir: value
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if not text or not all(clauses):
        raise BuildError(f"--chmod={text}: not a mode", hint="write 644, or symbols such as u=rwX,go=rX")
    changes = [(_mask(clause[1]), action) for clause in clauses if clause for action in _ACTION.findall(clause[2])]

    def apply(mode: int, is_dir: bool) -> int:
        for mask, (sign, letters) in changes:
            bits = _bits(letters, mode, is_dir) & mask
            kept = mode & ~bits if sign == "-" else mode if sign == "+" else mode & ~(mask & 0o7777)
            mode = kept if sign == "-" else kept | bits
        return mode

    return apply


def _mask(who: str) -> int:
    """The bits these letters may touch; nobody named is everybody (a build has no umask)."""
    letters = "ugo" if not who or "a" in who else who
    mask = 0
    for letter in letters:
        mask |= _WHO[letter]
    return mask


def _bits(letters: str, mode: int, is_dir: bool) -> int:
    bits = 0
    for letter in letters:
        if letter in _SHIFT:
            bits |= (mode >> _SHIFT[letter] & 0o7) * 0o111
        elif letter == "X":
            bits |= _BITS["x"] if is_dir or mode & 0o111 else 0
        else:
            bits |= _BITS[letter]
    return bits
