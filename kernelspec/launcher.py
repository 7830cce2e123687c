"""`python -m kernelspec.launcher DIRECTORY CONNECTION_FILE`: a kernelspec's kernel for front ends without provisioners.

They start argv and talk TCP to the ports of the connection file (VS Code, Spyder, old servers). The kernel itself talks over Unix
sockets: ZMTP does not care, so the bytes are passed on as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # kernel.json and connection files

from kernelspec.container import KernelContainer, KernelRequest, default_command, mounted_directory, options_from
from kernelspec.orphans import remove_orphans_meanwhile
from kernelspec.parameters import apply_all
from kernelspec.parent import parent_fd
from kernelspec.sockets import SocketDirectory
from sandbox import Engine
from sandbox.errors import InvalidOption, SandboxError

_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_CHUNK = 65536


def main(argv: Sequence[str]) -> int:
    """Run the kernel until it ends; its exit status."""
    try:
        spec, connection = _read(Path(argv[0], "kernel.json")), _read(Path(argv[1]))
        with Engine(_config(spec, argv[0])["root"] or None) as engine:
            return asyncio.run(_serve(_request(spec, _config(spec, argv[0]), engine), connection, engine))
    except SandboxError as err:
        sys.stderr.write(f"kernel: {err}" + (f" ({err.hint})" if err.hint else "") + "\n")
        return 125


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise InvalidOption(f"{file}: cannot be read: {err}") from err


def _config(spec: dict[str, Any], directory: str) -> dict[str, Any]:
    """Of the provisioner, which has our settings also for those who do not know provisioners."""
    try:
        return dict(spec["metadata"]["kernel_provisioner"]["config"])
    except (KeyError, TypeError) as err:
        raise InvalidOption(f"{directory}: is no kernelspec of ours", hint="sandbox kernel install IMAGE makes one") from err


def _request(spec: dict[str, Any], config: dict[str, Any], engine: Engine) -> KernelRequest:
    command = tuple(config["command"])
    if not command:
        command = default_command(engine, config["image"])
    session = os.environ.get("JPY_SESSION_NAME", "")
    options = apply_all(options_from(config["flags"]), Path(session) if session else None, os.environ, engine.root)
    return KernelRequest(
        image=config["image"],
        argv=command,
        options=options,
        env={name: value for name, value in spec.get("env", {}).items() if not name.startswith("KERNEL_")},
        cwd=mounted_directory(None) if config["mount"] else None,
        kernel_id=str(os.getpid()),
    )


async def _serve(request: KernelRequest, connection: dict[str, Any], engine: Engine) -> int:
    directory = SocketDirectory()
    kernel = KernelContainer(request, directory, engine)
    numbers = {channel: number for number, channel in enumerate(_CHANNELS, 1)}
    inside = {**connection, "transport": "ipc", "ip": directory.base, **{f"{name}_port": n for name, n in numbers.items()}}
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, kernel.signal, number)
        if (parent := parent_fd()) is not None:
            loop.add_reader(parent, ended.set)
        kernel.start(json.dumps(inside), stdout=1, stderr=2, on_end=lambda _: _tell(loop, ended))
        remove_orphans_meanwhile(engine)
        servers = [await _relay(connection, name, f"{directory.base}-{n}") for name, n in numbers.items()]
        await ended.wait()
        for server in servers:
            server.close()
    finally:
        await asyncio.to_thread(kernel.close)
    return kernel.poll() or 0


def _tell(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """From the thread that waits for the kernel."""
    loop.call_soon_threadsafe(ended.set)


async def _relay(connection: dict[str, Any], channel: str, socket_path: str) -> asyncio.Server:
    """Pass on what comes to the channel's port. Before the kernel listens a connection is closed: ZeroMQ tries again."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    if connection.get("transport") == "ipc":
        return await asyncio.start_unix_server(serve, f"{connection['ip']}-{connection[f'{channel}_port']}")
    return await asyncio.start_server(serve, connection["ip"], connection[f"{channel}_port"])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, asyncio.CancelledError):
        pass  # one side went: so does the other
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
