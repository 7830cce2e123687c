"""`sandbox-provisioner`: a jupyter_client provisioner that runs a kernelspec's kernel in a container.

A kernelspec names it in `metadata.kernel_provisioner` (jupyter_client, "Customizing the kernel's runtime environment"); its config are
the traits below. One object lives through restarts: the container and its files stay, only the kernel is started again.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any  # jupyter_client's keywords are untyped

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Bool, List, Unicode

from kernelspec import parameters
from kernelspec.container import CONNECTION, KernelContainer, KernelRequest, default_command, mounted_directory, options_from
from kernelspec.engines import shared_engines
from kernelspec.sockets import SocketDirectory
from sandbox import Engine
from sandbox.errors import SandboxError

_LAUNCHER = "kernelspec.launcher"
_PASSED_ON = ("JPY_SESSION_NAME", "TZ", "LANG")
"""Of the server's environment; the rest is the host's and stays there."""


class SandboxProvisioner(LocalProvisioner):
    """Runs the kernel in a container of `image`. From LocalProvisioner it has how connection files are written, with CurveZMQ's keys."""

    image = Unicode("", config=True, help="The image; empty: the kernelspec's argv runs in localhost/python.")
    flags = List(Unicode(), config=True, help="docker run's flags, as on a command line.")
    command = List(Unicode(), config=True, help="The kernel's command with {connection_file}; empty: ipykernel of the image's Python.")
    mount = Bool(True, config=True, help="Mount the notebook's directory at its own path, and work there.")
    root = Unicode("", config=True, help="The engine's state directory; empty: the usual one.")

    _kernel: KernelContainer | None = None
    _engine: Engine | None = None
    _directory: SocketDirectory | None = None
    _waited = True

    @property
    def has_process(self) -> bool:
        """Whether a kernel was started and not yet waited for."""
        return self._kernel is not None and self._kernel.id is not None and not self._waited

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose ipc before the connection file is written, and make the command."""
        if self._directory is None:
            self._directory = SocketDirectory()
        manager: Any = self.parent  # the KernelManager
        if self._engine is None:
            self._engine = shared_engines().engine(self.root)
        manager.transport = "ipc"
        manager.ip = self._directory.base
        manager.cache_ports = False  # they are for tcp
        self._directory.clear()
        extra = list(kwargs.get("extra_arguments") or ())
        prepared = dict(await super().pre_launch(**kwargs))
        try:
            prepared["cmd"] = [*await asyncio.to_thread(self._command), *extra]
        except BaseException as err:
            await self._give_up(err)
            raise
        return prepared

    def _command(self) -> list[str]:
        """The command inside, with {connection_file}: not the manager's, which has this host's paths in it."""
        if self.command:
            return list(self.command)
        argv = list(self.kernel_spec.argv)
        if _LAUNCHER not in argv:  # any kernelspec's own
            return argv
        assert self._engine is not None
        return list(default_command(self._engine, self.image))

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Start the kernel; SandboxError says why it cannot be."""
        assert self._directory is not None
        assert self._engine is not None
        self.cwd = kwargs.get("cwd")
        manager: Any = self.parent
        connection = Path(manager.connection_file).read_text(encoding="utf-8")
        stdout, stderr = _fd(kwargs.get("stdout"), 1), _fd(kwargs.get("stderr"), 2)
        try:
            if self._kernel is None:
                self._kernel = KernelContainer(self._request(cmd, kwargs, self._engine), self._directory, self._engine)
            await asyncio.to_thread(self._kernel.start, connection, stdout=stdout, stderr=stderr)
        except BaseException as err:
            await self._give_up(err)
            raise
        self._waited = False
        return self.connection_info

    async def _give_up(self, err: BaseException) -> None:
        """Clean up, since nobody else would: for jupyter_client there is no kernel then. Front ends show an error's text alone: the remedy
        goes into it."""
        await self.cleanup()
        if isinstance(err, SandboxError) and err.hint:
            err.args = (f"{err} ({err.hint})",)

    def _request(self, cmd: list[str], kwargs: dict[str, Any], engine: Engine) -> KernelRequest:
        env = dict(kwargs.get("env") or {})
        manager: Any = self.parent
        kept = {name: value for name, value in env.items() if name in self.kernel_spec.env or name in _PASSED_ON}
        cwd = mounted_directory(self.cwd) if self.mount else None
        options = parameters.apply_all(options_from(list(self.flags)), _notebook(self.cwd, env), env, engine.root)
        return KernelRequest(
            image=self.image or "localhost/python",
            argv=tuple(word.replace(manager.connection_file, CONNECTION) for word in cmd),
            options=options,
            env={name: value for name, value in kept.items() if not name.startswith("KERNEL_")},
            cwd=cwd,
            kernel_id=self.kernel_id or "",
        )

    async def poll(self) -> int | None:
        """None while the kernel runs, else its exit status (128+n: signal n)."""
        return self._kernel.poll() if self._kernel is not None else 0

    async def wait(self) -> int | None:
        """Until the kernel has ended; its exit status."""
        if self._kernel is None:
            return 0
        await asyncio.to_thread(self._kernel.wait)
        self._waited = True
        return self._kernel.poll()

    async def send_signal(self, signum: int) -> None:
        """Signal the kernel."""
        if signum and self._kernel is not None:
            self._kernel.signal(signum)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Called when the kernel was asked to end: whatever it ends with is no news."""
        del restart
        if self._kernel is not None:
            self._kernel.expect_end()

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM, whether it is `restart`ed or not."""
        del restart
        await self.send_signal(signal.SIGTERM)

    async def kill(self, restart: bool = False) -> None:
        """SIGKILL, whether it is `restart`ed or not."""
        del restart
        await self.send_signal(signal.SIGKILL)

    async def cleanup(self, restart: bool = False) -> None:
        """Nothing before a restart: the container stays. Else everything goes."""
        if restart:
            return
        kernel, directory = self._kernel, self._directory
        self._kernel = self._directory = self._engine = None  # before anything is waited for: a server may ask twice
        if kernel is not None:
            await asyncio.to_thread(kernel.close)
        elif directory is not None:
            directory.remove()

    def resolve_path(self, path_str: str) -> str | None:
        """A path of a traceback or a link, as the kernel means it: of a file inside the container, whatever the host has at that place."""
        return self._kernel.resolve(path_str) if self._kernel is not None else None

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What another process needs to find the container."""
        info = dict(await super().get_provisioner_info())
        return {**info, "container": self._kernel.id if self._kernel else None}


def _fd(given: Any, default: int) -> int:
    """Where the kernel's own output goes: what the server asks for, else where the server's goes."""
    if isinstance(given, int) and given >= 0:
        return given
    return int(given.fileno()) if hasattr(given, "fileno") else default


def _notebook(cwd: Any, env: dict[str, str]) -> Path | None:
    """The notebook a session belongs to: Jupyter Server says its path."""
    session = env.get("JPY_SESSION_NAME", "")
    return Path(cwd or ".", session) if session else None
