"""One process of a bundle's container while it is made: the command's side of the conversation with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from sandbox.errors import InvalidBundle, SetupFailed
from sandbox.runtime.bundle.config import Process
from sandbox.runtime.bundle.resources import Groups
from sandbox.runtime.bundle.states import SOCKET
from sandbox.runtime.init import bundle, files, link


class Given(msgspec.Struct, frozen=True):
    """How the caller wants a process made: where its pid is written, who gets its terminal, how many descriptors from 3 on it keeps."""

    pid_file: Path | None = None
    console: Path | None = None
    preserve_fds: int = 0
    pivot: bool = True


NOTHING_GIVEN = Given()


class Making:
    """The command's side while a process is set up: its link, and the descriptors it hands over."""

    def __init__(self, plan: dict[str, Any], groups: Groups, given: Given, listener: socket.socket | None) -> None:
        self._plan = plan
        self._given = given
        self.listen_ater = listener
        self._groups = groups
        self._opened = ExitStack()
        self._mine: socket.socket
        self._theirs: socket.socket

    def __enter__(self) -> Making:
        self._mine, self._theirs = (self._opened.enter_context(end) for end in link.pair())
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def clone(self, body: Callable[[Mapping[str, Any], bundle.Given], NoReturn]) -> int:
        """Make the process; it runs `body`."""
        joins = [self._keep(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) for path in self._groups.joins]
        console = self._keep(_connect_console(self._given.console)) if self._given.console else -1
        handed = bundle.Given(
            command=self._theirs, listener=self.listen_ater, console=console, joins=joins, preserved=self._given.preserve_fds
        )
        try:
            pid = bundle.clone(self._plan, lambda: body(self._plan, handed))
        except OSError as err:
            raise SetupFailed(f"{err.filename or 'clone'}: {(err.strerror or '').lower()}") from err
        self._theirs.close()
        return pid

    def _keep(self, fd: int) -> int:
        self._opened.callback(os.close, fd)
        return fd

    def map_ids(self, pid: int) -> None:
        """The user namespace's maps, then the process goes on."""
        self.expect("mapped")
        if self._plan["idmap"]:
            try:
                _write_id_maps(pid, self._plan["idmap"])
            except OSError as err:
                raise SetupFailed(f"user namespace: {(err.strerror or '').lower()}") from err
        self.go_on()

    def go_on(self) -> None:
        """Answer the process, which waits."""
        link.send(self._mine, {"event": "go"})

    def expect(self, event: str) -> None:
        """The next message is this one; else SetupFailed with what the process says."""
        message, _ = link.receive(self._mine)
        if message is None or message["event"] != event:
            raise _failure(message)

    def expect_executed(self, pid: int) -> None:
        """End of file: the program was executed, and with that our link closed."""
        message, _ = link.receive(self._mine)
        if message is not None:
            os.waitpid(pid, 0)
            raise _failure(message)


def _failure(message: Mapping[str, Any] | None) -> SetupFailed:
    return SetupFailed("the process was killed while it was set up" if message is None else str(message["message"]))


def listen_at(directory: Path) -> socket.socket:
    """The socket `start` connects to. Bound by a relative name: an absolute one is too long for sockaddr_un."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    at_directory(directory, lambda: listener.bind(SOCKET))
    listener.listen(1)
    return listener


def at_directory(directory: Path, action: Callable[[], None]) -> None:
    """Do something from a directory; this process has one thread."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        action()
    finally:
        os.fchdir(before)
        os.close(before)


def _connect_console(path: Path) -> int:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        at_directory(path.parent, lambda: receiver.connect(path.name))
    except OSError as err:
        raise SetupFailed(f"console socket {path}: {(err.strerror or '').lower()}") from err
    return receiver.detach()


def check_terminal(process: Process | None, given: Given) -> None:
    """A terminal needs somebody who takes its other end, and the other way round; InvalidBundle."""
    if process is None:
        return
    if process.terminal and not given.console:
        raise InvalidBundle("process.terminal: a console socket is needed", hint="pass --console-socket")
    if given.console and not process.terminal:
        raise InvalidBundle("--console-socket: the process has no terminal", hint="set process.terminal")


def _write_id_maps(pid: int, idmap: Mapping[str, Any]) -> None:
    """user_namespaces(7)."""
    for kind in ("uid", "gid"):
        files.write_value(f"/proc/{pid}/{kind}_map", "".join(f"{inner} {outer} {count}\n" for inner, outer, count in idmap[kind]))


def set_oom_score(pid: int, plan: Mapping[str, Any]) -> None:
    """proc_pid_oom_score_adj(5), while the process waits; SetupFailed."""
    value = plan["process"]["oom_score_adj"]
    if value is None:
        return
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(value))
    except PermissionError as err:
        raise SetupFailed(f"process.oomScoreAdj {value}: lowering it needs CAP_SYS_RESOURCE") from err


def write_pid(path: Path, pid: int) -> None:
    """Replaced at once: who waits for the file must not read half a number."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(str(pid))
    temporary.rename(path)
