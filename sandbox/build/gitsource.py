"""A git repository fetched for an ADD, with the `git` program: which commit a name means, and its files in a directory.

What is fetched is kept below the engine's directory (`sources/git/`), one bare repository a remote, so that a commit that
has been there once needs no network. The user's and the system's git configuration are not read, nothing is asked for on a
terminal, and only http, https, ssh and git are spoken: a repository must not be able to make the host do anything.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from sandbox.build.gitref import COMMIT, GitRef
from sandbox.errors import BuildError

_SETTINGS = (
    "protocol.allow=never", "protocol.http.allow=always", "protocol.https.allow=always", "protocol.ssh.allow=always",
    "protocol.git.allow=always", "core.hooksPath=/dev/null", "core.symlinks=true", "core.autocrlf=false", "gc.auto=0",
    "advice.detachedHead=false", "init.defaultBranch=main",
)  # fmt: skip
_MIRROR_SETTINGS = ("protocol.file.allow=always",)
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_SSH_COMMAND": "ssh -F none -o BatchMode=yes",
    "GIT_ASKPASS": "/bin/false",
    "LC_ALL": "C",
}
_TIMEOUT = 600
_ALL = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


class Repositories(msgspec.Struct, frozen=True):
    """The repositories kept in `root`; `environ` is what git sees beside our settings (PATH, HOME, SSH_AUTH_SOCK, proxies)."""

    root: Path
    environ: Mapping[str, str]

    def commit_of(self, ref: GitRef) -> str:
        """The full id of the commit the reference means, as the remote has it now; a full id means itself. BuildError."""
        found = ref.ref if COMMIT.fullmatch(ref.ref) else self._ask(ref)
        if ref.checksum and not found.startswith(ref.checksum):
            message = f"{ref.remote}: expected commit {ref.checksum}, {ref.ref or 'HEAD'} is {found}"
            raise BuildError(message, hint="the ref has moved, or the checksum is another's")
        return found

    def checkout(self, ref: GitRef, commit: str, directory: Path, *, keep_git_dir: bool) -> None:
        """Put the files of a commit into an empty directory, 0644 or 0755, with the commit's time. BuildError."""
        with self._mirror(ref.remote) as mirror:
            self._fetch(ref, commit, mirror)
            self._git(directory, "init", "-q")
            self._git(directory, "fetch", "-q", "--no-tags", str(mirror), f"+{_kept_name(commit)}:{_kept_name(commit)}", local=True)
            seconds = int(self._git(mirror, "show", "-s", "--format=%ct", commit))
        self._git(directory, "checkout", "-q", "--detach", commit)
        self._git(directory, "update-ref", "-d", _kept_name(commit))
        self._git(directory, "remote", "add", "origin", ref.remote)
        if ref.submodules and (directory / ".gitmodules").is_file():
            self._git(directory, "submodule", "-q", "update", "--init", "--recursive", "--depth=1")
        if not keep_git_dir:
            _remove_git(directory)
        _stamp(directory, seconds)

    def _ask(self, ref: GitRef) -> str:
        names = _full_names(ref.ref)
        lines = self._git(None, "ls-remote", ref.remote, *names, *(f"{name}^{{}}" for name in names)).splitlines()
        found = {name: commit for commit, _, name in (line.partition("\t") for line in lines)}
        for name in names:  # a branch before a tag of the same name; a tag with a message is worth what it points to
            if commit := found.get(f"{name}^{{}}") or found.get(name):
                return commit
        if ref.checksum and ref.ref == ref.checksum:
            return self._complete(ref)
        hint = "a commit is named by its full id, or with ?checksum="
        raise BuildError(f"{ref.remote}: no branch or tag {ref.ref or 'HEAD'}", hint=hint)

    def _complete(self, ref: GitRef) -> str:
        """The one commit whose id begins with the checksum."""
        with self._mirror(ref.remote) as mirror:
            self._git(mirror, "fetch", "-q", ref.remote, *_ALL)
            try:
                return self._git(mirror, "rev-parse", "--verify", "-q", f"{ref.ref}^{{commit}}").strip()
            except BuildError:
                raise BuildError(f"{ref.remote}: no commit {ref.ref}") from None

    @contextmanager
    def _mirror(self, remote: str) -> Iterator[Path]:
        """The bare repository for a remote, made when missing; one process uses it at a time."""
        directory = self.root / hashlib.sha256(remote.encode()).hexdigest()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / "HEAD").is_file():
                shutil.rmtree(directory, ignore_errors=True)
                self._git(None, "init", "-q", "--bare", str(directory))
            yield directory
        finally:
            os.close(lock)

    def _fetch(self, ref: GitRef, commit: str, mirror: Path) -> None:
        """Have the commit in the mirror, under a name that keeps it: it alone where the server gives it, else everything."""
        if not self._has(mirror, commit):
            for depth in (("--depth=1",), ()):
                try:
                    self._git(mirror, "fetch", "-q", "--no-tags", *depth, ref.remote, commit)
                    break
                except BuildError:
                    continue  # by its id: not every server allows that, and a plain file server cannot count depth
            if not self._has(mirror, commit):
                self._git(mirror, "fetch", "-q", ref.remote, *_ALL)
        if not self._has(mirror, commit):
            raise BuildError(f"{ref.remote}: no commit {commit}")
        self._git(mirror, "update-ref", _kept_name(commit), commit)

    def _has(self, mirror: Path, commit: str) -> bool:
        try:
            self._git(mirror, "cat-file", "-e", f"{commit}^{{tree}}")
        except BuildError:
            return False
        return True

    def _git(self, directory: Path | None, *arguments: str, local: bool = False) -> str:
        settings = _SETTINGS + (_MIRROR_SETTINGS if local else ())
        command = ["git", *(word for setting in settings for word in ("-c", setting)), *arguments]
        environ = {**self.environ, **_ENVIRONMENT}
        try:
            done = subprocess.run(
                command, cwd=directory or "/", env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, umask=0o022
            )
        except FileNotFoundError as err:
            raise BuildError("git: not installed", hint="ADD of a repository needs the git program on this machine") from err
        except subprocess.TimeoutExpired as err:
            raise BuildError(f"git {arguments[0]}: no answer in {_TIMEOUT} s") from err
        if done.returncode:
            raise _failure(arguments, done.stderr.decode("utf-8", "replace"))
        return done.stdout.decode("utf-8", "surrogateescape")


def _failure(arguments: tuple[str, ...], stderr: str) -> BuildError:
    lines = [line.removeprefix("fatal: ").removeprefix("error: ") for line in stderr.strip().splitlines() if line.strip()]
    reason = lines[0] if lines else "failed"
    offline = "Could not resolve host" in stderr or "unable to access" in stderr or "unable to connect" in stderr
    hint = "is this machine online? a proxy comes from https_proxy" if offline else None
    return BuildError(f"git {arguments[0]}: {reason[:1].lower()}{reason[1:].rstrip('.')}", hint=hint)


def _full_names(ref: str) -> tuple[str, ...]:
    if not ref or ref.startswith("refs/"):
        return (ref or "HEAD",)
    return (f"refs/heads/{ref}", f"refs/tags/{ref}")


def _kept_name(commit: str) -> str:
    return f"refs/sandbox/{commit}"


def _remove_git(directory: Path) -> None:
    """Take away every `.git`: a directory at the top, files in the submodules."""
    for place, directories, files in os.walk(directory):
        if ".git" in directories:
            shutil.rmtree(Path(place, ".git"))
            directories.remove(".git")
        if ".git" in files:
            Path(place, ".git").unlink()


def _stamp(directory: Path, seconds: int) -> None:
    """Give everything the commit's time: the time of a checkout says nothing, and would make no two builds the same."""
    for place, directories, files in os.walk(directory, topdown=False):
        for name in (*files, *directories):
            os.utime(Path(place, name), (seconds, seconds), follow_symlinks=False)
    os.utime(directory, (seconds, seconds))
