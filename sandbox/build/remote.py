"""The sources of an ADD that are not in the context: URLs and git repositories, known by digest or commit before they are fetched."""

from __future__ import annotations

import base64
import os
import urllib.parse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.context import Context, Match
from sandbox.build.expand import PROXY_ARGS
from sandbox.build.gitref import GitRef, check_checksum, parse_git_ref
from sandbox.build.selection import Piece
from sandbox.build.site import Site
from sandbox.build.urls import check_digest, is_url, name_of
from sandbox.errors import BuildError

if TYPE_CHECKING:
    from sandbox.build.download import Download


class Remote(msgspec.Struct, frozen=True):
    """One source: `inputs` say what it holds, for the cache key; `fetch` puts it into an empty directory as something to copy,
    held open by the stack."""

    inputs: tuple[str, ...]
    fetch: Callable[[Path, ExitStack], Piece]


def remote_source(source: str, i: ins.Files, site: Site) -> Remote | None:
    """What a source of an ADD means when it is remote; None when it is a path. The network is asked what it holds now, unless a
    checksum says it. DockerfileError for what cannot be meant, BuildError, DigestMismatch."""
    git = parse_git_ref(source)
    if git is None and not is_url(source):
        return None
    if not isinstance(i, ins.Add):
        raise site.error(f"COPY {source}: a remote source", i, word=source, hint="ADD fetches URLs and repositories")
    return _http(source, i, site) if git is None else _git(_settled(git, i), site)


def is_remote(source: str) -> bool:
    """Whether a source of an ADD needs no context."""
    return is_url(source) or parse_git_ref(source) is not None


def check_flags(i: ins.Files, site: Site) -> None:
    """--checksum belongs to one remote source; DockerfileError."""
    if not isinstance(i, ins.Add) or i.checksum is None:
        return
    if len(i.sources) != 1 or i.heredocs:
        raise site.error("ADD: --checksum: for one source only", i, word="--checksum")
    if not is_remote(i.sources[0]):
        raise site.error("ADD: --checksum: for a URL or a git repository only", i, word="--checksum")


def _environ(site: Site) -> dict[str, str]:
    """The caller's environment, with the proxies given to the build: git and the HTTP client run on this side of the sandbox."""
    return {**os.environ, **{name: site.build_args[name] for name in PROXY_ARGS if name in site.build_args}}


def _secret(site: Site, *names: str) -> str | None:
    """The first of these secrets the build was given."""
    found = next((site.secrets[name] for name in names if name in site.secrets), None)
    return found.decode("latin-1").strip() if found is not None else None


def _http_authorization(url: str, site: Site) -> str | None:
    """What the secrets HTTP_AUTH_HEADER_<host> and HTTP_AUTH_TOKEN_<host> say, as BuildKit takes them."""
    host = urllib.parse.urlsplit(url).hostname or ""
    token = _secret(site, f"HTTP_AUTH_TOKEN_{host}")
    return _secret(site, f"HTTP_AUTH_HEADER_{host}") or (f"Bearer {token}" if token else None)


def _git_authorization(remote: str, site: Site) -> dict[str, str]:
    """The secrets GIT_AUTH_HEADER and GIT_AUTH_TOKEN (of one host with .<host> after it), as git's configuration in its
    environment: a command line could be read by others."""
    parts = urllib.parse.urlsplit(remote)
    if parts.scheme not in ("http", "https"):
        return {}
    header = _secret(site, f"GIT_AUTH_HEADER.{parts.hostname}", "GIT_AUTH_HEADER")
    token = _secret(site, f"GIT_AUTH_TOKEN.{parts.hostname}", "GIT_AUTH_TOKEN")
    if header is None and token is not None:
        header = "basic " + base64.b64encode(f"x-access-token:{token}".encode("latin-1")).decode()
    if header is None:
        return {}
    name = f"http.{parts.scheme}://{parts.netloc}/.extraheader"
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": name, "GIT_CONFIG_VALUE_0": f"Authorization: {header}"}


# -- URLs --------------------------------------------------------------------------------------------------------------


def _http(url: str, i: ins.Add, site: Site) -> Remote:
    name = name_of(url)
    if name is None and i.destination.endswith("/"):
        raise site.error(f"ADD {url}: no file name in it", i, word=url, hint="end the destination with a file name")
    from sandbox.build.download import Downloads  # with email, and urllib3 in the end

    downloads = Downloads(site.store.root / "sources" / "http", _environ(site), _http_authorization(url, site))
    checksum = check_digest(i.checksum) if i.checksum else None
    found = None if checksum else downloads.fetch(url)
    digest = checksum or (found.digest if found else "")

    def fetch(directory: Path, opened: ExitStack) -> Piece:
        return _as_piece(found or downloads.fetch(url, checksum), name or "file", directory, opened, unpack=bool(i.unpack))

    return Remote(("http", name or "", digest), fetch)


def _as_piece(found: Download, name: str, directory: Path, opened: ExitStack, *, unpack: bool) -> Piece:
    """The file as ADD has it: 0600, of the server's time."""
    path = directory / "file"
    import shutil

    shutil.copyfile(found.path, path)
    path.chmod(0o600)
    os.utime(path, (found.mtime or 0, found.mtime or 0))
    context = opened.enter_context(Context(directory, ignoring=False))
    entry = context.lookup("/file")
    assert entry is not None  # just made
    return Piece(context, Match(name, entry), unpack)


# -- git ---------------------------------------------------------------------------------------------------------------


def _settled(ref: GitRef, i: ins.Add) -> GitRef:
    """The reference with the flags of the instruction; BuildError when they contradict it."""
    if ref.keep_git_dir is not None and i.keep_git_dir is not None and ref.keep_git_dir != i.keep_git_dir:
        raise BuildError(f"{ref.remote}: --keep-git-dir and ?keep-git-dir contradict each other")
    if i.checksum and ref.checksum and i.checksum != ref.checksum:
        raise BuildError(f"{ref.remote}: --checksum and ?checksum contradict each other")
    checksum = check_checksum(i.checksum) if i.checksum else ref.checksum
    return replace(ref, checksum=checksum, keep_git_dir=ref.keep_git_dir if i.keep_git_dir is None else i.keep_git_dir)


def _git(ref: GitRef, site: Site) -> Remote:
    from sandbox.build.gitsource import Repositories  # with subprocess

    repositories = Repositories(site.store.root / "sources" / "git", {**_environ(site), **_git_authorization(ref.remote, site)})
    commit = repositories.commit_of(ref)
    keep = bool(ref.keep_git_dir)

    def fetch(directory: Path, opened: ExitStack) -> Piece:
        repositories.checkout(ref, commit, directory, keep_git_dir=keep)
        context = opened.enter_context(Context(directory, ignoring=False))
        entry = context.lookup("/" + ref.subdir, follow=True)
        if entry is None or not entry.is_dir:
            raise BuildError(f"{ref.remote}: no directory {ref.subdir} in {commit[:12]}")
        return Piece(context, Match("", entry))

    return Remote(("git", commit, ref.subdir, ref.remote if keep else "", str(ref.submodules)), fetch)
