"""A git repository as the source of an ADD: its notation, by the rules of BuildKit (dfgitutil, gitutil). Pure.

`https://host/repo.git[?query][#ref[:subdir]]` (http and https only with a path that ends in .git), `ssh://…`, `git://…`,
`user@host:path[#…]`. Query keys: ref, tag, branch, subdir, checksum (or commit), keep-git-dir, submodules.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping

import msgspec
from msgspec.structs import replace

from sandbox.errors import BuildError

_SCP = re.compile(r"([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
_TRUE, _FALSE = frozenset({"", "1", "t", "true"}), frozenset({"0", "f", "false"})
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{1,64}")


class GitRef(msgspec.Struct, frozen=True):
    """A repository and what of it: `ref` a branch, tag, commit or full name ("": its HEAD), `subdir` a directory in it,
    `checksum` the beginning of the commit's id that is expected."""

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str | None = None
    keep_git_dir: bool | None = None
    submodules: bool = True


def parse_git_ref(text: str) -> GitRef | None:
    """What the source of an ADD says; None when it is not a git repository. BuildError for one that contradicts itself."""
    if text.startswith(("./", "../")):
        return None
    found = _scp(text) if not _SCHEME.match(text) else _url(text)
    if found is None:
        return None
    remote, query, fragment = found
    ref, _, subdir = fragment.partition(":")
    return _with_query(GitRef(remote, ref, subdir), query, text)


def check_checksum(text: str) -> str:
    """The commit id, or its beginning, as --checksum has it; BuildError for anything else."""
    if not _PREFIX.fullmatch(text):
        raise BuildError(f"--checksum={text}: expected a commit's hexadecimal id, or its beginning")
    return text


def _scp(text: str) -> tuple[str, str, str] | None:
    match = _SCP.fullmatch(text)
    if not match:
        return None
    return f"{match[1]}@{match[2]}:{match[3]}", match[4] or "", match[5] or ""


def _url(text: str) -> tuple[str, str, str] | None:
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https", "ssh", "git"):
        return None
    if parts.scheme in ("http", "https") and not parts.path.endswith(".git"):
        return None
    return urllib.parse.urlunsplit(parts._replace(query="", fragment="")), parts.query, parts.fragment


def _with_query(ref: GitRef, query: str, text: str) -> GitRef:
    values: dict[str, str] = {}
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key in values:
            raise BuildError(f"{text}: {key}: given twice")
        if key not in _QUERY:
            raise BuildError(f"{text}: unknown key {key} after the ?", hint="the keys are " + " ".join(_QUERY))
        if not value and key not in ("submodules", "keep-git-dir"):
            raise BuildError(f"{text}: {key}: expected a value")
        values[key] = value
    if "tag" in values and "branch" in values:
        raise BuildError(f"{text}: branch and tag: give one of them")
    for key, value in values.items():
        ref = _QUERY[key](ref, value, text)
    return replace(ref, ref=ref.checksum) if ref.checksum and not ref.ref else ref


def _agreed(before: str, value: str, what: str, text: str) -> str:
    if before and before != value:
        raise BuildError(f"{text}: {what} {before} and {value}: they contradict each other")
    return value


def _named(prefix: str) -> Callable[[GitRef, str, str], GitRef]:
    def apply(ref: GitRef, value: str, text: str) -> GitRef:
        return replace(ref, ref=_agreed(ref.ref, value if value.startswith(prefix) else prefix + value, "ref", text))

    return apply


def _switch(key: str, value: str, text: str) -> bool:
    if value.lower() not in _TRUE | _FALSE:
        raise BuildError(f"{text}: {key}={value}: expected true or false")
    return value.lower() in _TRUE


_QUERY: Mapping[str, Callable[[GitRef, str, str], GitRef]] = {
    "ref": lambda ref, value, text: replace(ref, ref=_agreed(ref.ref, value, "ref", text)),
    "tag": _named("refs/tags/"),
    "branch": _named("refs/heads/"),
    "subdir": lambda ref, value, text: replace(ref, subdir=_agreed(ref.subdir, value, "subdir", text)),
    "checksum": lambda ref, value, text: replace(ref, checksum=_agreed(ref.checksum or "", check_checksum(value), "checksum", text)),
    "commit": lambda ref, value, text: replace(ref, checksum=_agreed(ref.checksum or "", check_checksum(value), "checksum", text)),
    "keep-git-dir": lambda ref, value, text: replace(ref, keep_git_dir=_switch("keep-git-dir", value, text)),
    "submodules": lambda ref, value, text: replace(ref, submodules=_switch("submodules", value, text)),
}
