"""RUN --mount: its text as a value, by the rules of BuildKit's Dockerfile frontend (frontend/dockerfile/docs/reference.md).

Values may hold variables, which only the step knows: the text is checked as far as it is plain when the Dockerfile is
read, and becomes a `RunMount` when the instruction is expanded. `from` is never expanded: the graph of stages needs it.
"""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Callable
from typing import Literal, get_args

import msgspec
from msgspec.structs import replace

from sandbox.build.source import did_you_mean
from sandbox.errors import InvalidOption
from sandbox.options import parse_size

MountType = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
Sharing = Literal["shared", "private", "locked"]
_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
_DEFAULT_MODE = {"cache": 0o755, "secret": 0o400, "ssh": 0o600}
_OWNED = frozenset(_DEFAULT_MODE)
_KEYS: dict[str, frozenset[str]] = {
    "type": frozenset(get_args(MountType)),
    "from": frozenset({"bind", "cache"}),
    "source": frozenset({"bind", "cache", "secret"}),
    "target": frozenset(get_args(MountType)),
    "readonly": frozenset(get_args(MountType)),
    "readwrite": frozenset(get_args(MountType)),
    "id": frozenset({"cache", "secret", "ssh"}),
    "sharing": frozenset({"cache"}),
    "size": frozenset({"tmpfs"}),
    "required": frozenset({"secret", "ssh"}),
    "env": frozenset({"secret"}),
    "mode": _OWNED,
    "uid": _OWNED,
    "gid": _OWNED,
}
"""Which types a key belongs to."""
_OPPOSITE = {"readonly": "readwrite", "readwrite": "readonly"}
_SWITCHES = frozenset({"readonly", "readwrite", "required"})
_TRUE, _FALSE = frozenset({"1", "t", "true"}), frozenset({"0", "f", "false"})
_LARGEST = 2**32 - 1


class MountError(ValueError):
    """A --mount that cannot be meant: the message, the `word` it is about, a `hint`."""

    def __init__(self, message: str, word: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.word = word
        self.hint = hint


class RunMount(msgspec.Struct, frozen=True):
    """One --mount of a RUN with BuildKit's defaults filled in.

    `target`: as written, below the working directory unless absolute ("": the working directory itself); for a secret and for
    ssh None when it is not to be a file (a secret with `env` alone, ssh's own place). The final target must not be /.
    `source`: absolute path within `origin` (bind, cache). `origin`: stage, image or named context (--from's rules);
    None: the build context (bind), an empty directory (cache). `id`: of the cache, the secret or the ssh agent; for a
    cache None means its resolved target. `read_only`: what is written to a bind that is not read-only is thrown away after the step.
    `mode`, `uid`, `gid`: of a secret's or socket's file, or of a cache's directory when it is made; None: nothing was asked for
    and the defaults hold (`file_mode`). `env`: the variable that holds the secret. `required`: fail when nobody gave the secret.
    `size`: of a tmpfs in bytes, None: unlimited.
    """

    type: MountType
    target: str | None
    source: str = "/"
    origin: str | None = None
    read_only: bool = True
    id: str | None = None
    sharing: Sharing = "shared"
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    required: bool = False
    env: str | None = None
    size: int | None = None

    @property
    def file_mode(self) -> int:
        """`mode`, or the type's default: 0755 cache, 0400 secret, 0600 ssh."""
        return self.mode if self.mode is not None else _DEFAULT_MODE.get(self.type, 0o755)

    @property
    def owner(self) -> tuple[int, int]:
        """uid and gid, 0 where not given."""
        return self.uid or 0, self.gid or 0


class MountText(msgspec.Struct, frozen=True):
    """A --mount as written: `text`, and its `origin` (from=), which is known before expansion."""

    text: str
    origin: str | None = None


def read_mount(text: str) -> MountText:
    """Check what can be checked before variables are known; raises MountError."""
    fields = _fields(text)
    origin = next((found.value for found in reversed(fields) if found.name == "from"), None)
    if "$" in (origin or ""):
        raise MountError("from: variables are not expanded here", "from", "name a stage with FROM, where they are, and use it")
    if "$" not in text:
        parse_mount(text, lambda word: word)  # quotes and escapes, which expansion would remove, are the values' only change
    return MountText(text, origin or None)


def parse_mount(text: str, expand: Callable[[str], str]) -> RunMount:
    """The mount with every value expanded; raises MountError, and what `expand` raises."""
    draft = _Draft()
    for found in _fields(text):
        draft.set(found if found.value is None or found.name == "from" else replace(found, value=expand(found.value)))
    return draft.finish()


class _Field(msgspec.Struct, frozen=True):
    """A key by its full name, its value (None: a bare key), and the field as written."""

    name: str
    value: str | None
    word: str


def _fields(text: str) -> list[_Field]:
    """The fields of a CSV record."""
    try:
        words = next(csv.reader([text], strict=True), [])
    except csv.Error as err:
        raise MountError(f"not a list of key=value: {err}", text) from None
    if not words or "\n" in text:
        raise MountError("expected key=value,…", text or "--mount")
    return [_field(word) for word in words]


def _field(word: str) -> _Field:
    key, equals, value = word.partition("=")
    name = _ALIASES.get(key.lower(), key.lower())
    if name not in _KEYS:
        raise MountError(f"unknown key {key or word!r}", key or "--mount", did_you_mean(key, (*_KEYS, *_ALIASES)) or _all_keys())
    if not equals and name not in _SWITCHES:
        raise MountError(f"{key}: expected a value", word, f"write {key}=VALUE")
    return _Field(name, value if equals else None, word)


def _all_keys() -> str:
    return "the keys are " + " ".join(_KEYS)


class _Draft(msgspec.Struct):
    """The keys of one mount, one after the other, then as a whole."""

    found: dict[str, _Field] = msgspec.field(default_factory=dict)

    def set(self, found: _Field) -> None:
        self.found[found.name] = found
        if found.name in _OPPOSITE:  # the later of the two counts
            self.found.pop(_OPPOSITE[found.name], None)

    def finish(self) -> RunMount:
        kind = self._choice("type", get_args(MountType), "bind")
        for name in self.found:
            if kind not in _KEYS[name]:
                owners = ", ".join(sorted(_KEYS[name]))
                raise self._error(name, f"{name}: not a key of a mount of type {kind}", f"{name} belongs to {owners}")
        mount = RunMount(
            type=kind,  # type: ignore[arg-type]  # _choice has checked it
            target=self._text("target"),
            source=posixpath.normpath("/" + (self._text("source") or "")).replace("//", "/"),
            origin=self._text("from") or None,
            read_only=self._is_read_only(kind),
            id=self._text("id") or None,
            sharing=self._choice("sharing", get_args(Sharing), "shared"),  # type: ignore[arg-type]  # as above
            mode=self._number("mode", 8),
            uid=self._number("uid", 10),
            gid=self._number("gid", 10),
            required=self._switch("required", default=False),
            env=self._text("env"),
            size=self._size(),
        )
        return _FINISH[kind](mount, self._text("source") or "")

    def _text(self, name: str) -> str | None:
        return self.found[name].value if name in self.found else None

    def _error(self, name: str, message: str, hint: str | None = None) -> MountError:
        return MountError(message, self.found[name].word, hint)

    def _choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self._text(name)
        if value is None:
            return default
        if value.lower() not in known:
            raise self._error(name, f"{name}={value}: expected {' '.join(known)}", did_you_mean(value, known))
        return value.lower()

    def _is_read_only(self, kind: str) -> bool:
        if "readwrite" in self.found:
            return not self._switch("readwrite", default=True)
        return self._switch("readonly", default=kind not in ("cache", "tmpfs"))

    def _switch(self, name: str, *, default: bool) -> bool:
        if name not in self.found:
            return default
        value = self.found[name].value
        if value is None or value.lower() in _TRUE:
            return True
        if value.lower() not in _FALSE:
            raise self._error(name, f"{name}={value}: expected true or false")
        return False

    def _number(self, name: str, base: int) -> int | None:
        value = self._text(name)
        if value is None:
            return None
        digits = "01234567" if base == 8 else "0123456789"
        if not value or len(value) > 11 or set(value) - set(digits) or int(value, base) > _LARGEST:
            expected = "an octal mode" if base == 8 else "a number"
            raise self._error(name, f"{name}={value}: expected {expected}")
        return int(value, base)

    def _size(self) -> int | None:
        value = self._text("size")
        if value is None:
            return None
        try:
            size = parse_size(value)
        except InvalidOption:
            raise self._error("size", f"size={value}: expected a number with b, k, m, g or t") from None
        return size if size > 0 else None


def _with_target(mount: RunMount, _source: str) -> RunMount:
    return replace(mount, target=mount.target or "")


def _secret(mount: RunMount, source: str) -> RunMount:
    """`source` is another word for id; without a target the file is /run/secrets/ID, unless a variable is asked for."""
    if source and mount.id:
        raise MountError("source and id: give one of them", "source")
    name = source or mount.id or posixpath.basename(mount.target or "")
    if not name:
        raise MountError("a secret needs an id or a target", "secret")
    env = name if mount.env == "" else mount.env
    target = mount.target or (None if env else f"/run/secrets/{posixpath.basename(name)}")
    return replace(mount, id=name, source="/", env=env, target=target)


def _ssh(mount: RunMount, _source: str) -> RunMount:
    return replace(mount, id=mount.id or "default", target=mount.target or None)


_FINISH: dict[str, Callable[[RunMount, str], RunMount]] = {
    "bind": _with_target,
    "cache": _with_target,
    "tmpfs": _with_target,
    "secret": _secret,
    "ssh": _ssh,
}
