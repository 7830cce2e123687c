"""Containers of kernels that nobody has any more: their server was killed, or killed them. The next kernel's start takes them away."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

from kernelspec.sockets import is_abandoned
from sandbox import Engine
from sandbox.errors import SandboxError
from sandbox.records import ALIVE

log = logging.getLogger(__name__)

KERNEL_LABEL = "org.jupyter.sandbox.kernel.id"
"""The label of a kernel's container that says the id its server knows the kernel by."""
DIRECTORY_LABEL = "org.jupyter.sandbox.kernel.directory"
"""Where its sockets are."""
CONNECTION_LABEL = "org.jupyter.sandbox.kernel.connection"
"""Of a Sandbox kernel's container: the kernel's connection file, which its server removes when it is done with the kernel."""
SERVER_LABEL = "org.jupyter.sandbox.kernel.server"
"""Of a Sandbox kernel's container: the process that started the kernel, and would start it again."""


def this_server() -> str:
    """The parent of this process, as SERVER_LABEL has it: also when its number is given to another, that is another text."""
    return _described(os.getppid())


def _described(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            began = file.read().rpartition(")")[2].split()[19]  # proc_pid_stat(5): starttime is the 22nd
    except OSError:
        began = "gone"
    return f"{pid} {began}"


def is_orphan(labels: Mapping[str, str]) -> bool:
    """Whether a container with these labels is a kernel's whose server is gone, or done with it."""
    if (directory := labels.get(DIRECTORY_LABEL)) is not None:
        return is_abandoned(directory)
    if (server := labels.get(SERVER_LABEL)) is not None:
        pid = server.partition(" ")[0]
        return not (os.path.exists(labels.get(CONNECTION_LABEL, "")) and pid.isdigit() and _described(int(pid)) == server)
    return False


def remove_orphans(engine: Engine) -> None:
    """Remove the stopped containers of such kernels. One that cannot be removed is for the log, and for the next time."""
    for each in engine.containers(all=True):
        if is_orphan(each.labels) and each.status not in ALIVE:
            try:
                each.remove(volumes=True)
            except SandboxError as err:  # somebody else was quicker, or restarts it just now
                log.info("%s: %s", each.name, err)


def remove_orphans_meanwhile(engine: Engine) -> None:
    """As `remove_orphans`, in a thread: nobody waits for it."""
    threading.Thread(target=remove_orphans, args=(engine,), daemon=True, name="sandbox orphans").start()
