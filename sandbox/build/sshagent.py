"""`--ssh`: the host's ssh agent, or one for this build alone, as a socket that a step may use.

An agent only talks to its own user, and the container's root is another: so a socket of ours stands in between, whose
other end is the agent's. Keys never come near the container.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from stat import S_ISSOCK

from sandbox.errors import BuildError, InvalidOption

_CHUNK = 65536


@contextmanager
def open_agents(requests: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """The socket of each agent; for key files an agent is started, which ends with the block. BuildError, InvalidOption."""
    with ExitStack() as opened:
        yield {name: _agent_of(name, paths, opened) for name, paths in requests.items()}


def _agent_of(name: str, paths: tuple[str, ...], opened: ExitStack) -> str:
    for path in paths:
        if not os.path.exists(path):
            raise InvalidOption(f"--ssh {name}: {path}: no such file or socket")
    sockets = [path for path in paths if S_ISSOCK(os.stat(path).st_mode)]
    if not sockets:
        return opened.enter_context(_agent_with(paths))
    if len(paths) > 1:
        raise InvalidOption(f"--ssh {name}: one socket, or key files, not both", hint="give each an id of its own")
    return sockets[0]


@contextmanager
def _agent_with(keys: tuple[str, ...]) -> Iterator[str]:
    if shutil.which("ssh-agent") is None or shutil.which("ssh-add") is None:
        raise BuildError("--ssh with key files: ssh-agent and ssh-add are not installed", hint="install openssh-client")
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-") as directory:
        place = f"{directory}/agent"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert agent.stdout is not None
            agent.stdout.readline()  # it prints the variables once it listens
            environment = {**os.environ, "SSH_AUTH_SOCK": place, "SSH_ASKPASS": "/bin/false"}
            added = subprocess.run(
                ["ssh-add", "-q", *keys], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
            if added.returncode:
                raise BuildError(f"--ssh {', '.join(keys)}: {added.stderr.strip() or 'not a key'}", hint="give a key without passphrase")
            yield place
        finally:
            agent.terminate()
            agent.communicate()


@contextmanager
def forwarded(agent: str, place: Path, owner: tuple[int, int], mode: int) -> Iterator[None]:
    """A socket at `place` behind which the agent is, while the block lasts."""
    directory = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # by way of the descriptor: a socket's path has 108 bytes at most (unix(7))
        server = _Server(f"/proc/self/fd/{directory}/{place.name}", agent)
        with server:
            if owner != (0, 0):
                os.chown(place, *owner)
            place.chmod(mode)
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="build-ssh")
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()
    finally:
        os.close(directory)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False  # a connection ends with the container, whose end it holds

    def __init__(self, path: str, agent: str) -> None:
        super().__init__(path, _Handler)
        self.agent = agent


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        with socket.socket(socket.AF_UNIX) as upstream:
            try:
                upstream.connect(self.server.agent)
            except OSError:
                return  # the agent is gone: the program sees its connection end
            _pump(self.request, upstream)


def _pump(one: socket.socket, other: socket.socket) -> None:
    """Both ways until one side ends."""
    ends = {one: other, other: one}
    while True:
        ready, _, _ = select.select([one, other], [], [])
        for source in ready:
            try:
                data = source.recv(_CHUNK)
                if not data:
                    return
                ends[source].sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return
