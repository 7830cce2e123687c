"""Kernels in containers of a person without privileges: both kinds, with a network and without, nothing left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.ordinary_user import SYSTEM_PYTHON, OrdinaryUser, packages_of

pytestmark = [requires("root", "userns", "overlay", "tool:pasta", "tun"), pytest.mark.xdist_group("kernels")]

TALK = """
import json, os, sys
from jupyter_client.manager import KernelManager

said = {}
for name in sys.argv[1:]:
    manager = KernelManager(kernel_name=name)
    manager.start_kernel()
    client = manager.client()
    client.start_channels()

    def run(code, interrupt=False):
        texts = []
        def take(message):
            if message["msg_type"] in ("stream", "error"):
                texts.append(message["content"].get("text") or message["content"]["ename"])
            if interrupt and len(texts) == 1:
                manager.interrupt_kernel()
        client.execute_interactive(code, output_hook=take, timeout=60)
        return "".join(texts)

    try:
        client.wait_for_ready(timeout=60)
        look = "import os, socket; print(os.getcwd(), os.getuid(), [name for _, name in socket.if_nameindex()])"
        said[name] = [run(look), run("import time\\nprint('on')\\ntime.sleep(1000)", interrupt=True)]
        run("open('/kept', 'w').write('file')")
        manager.restart_kernel()
        client.wait_for_ready(timeout=60)
        said[name].append(run("print(open('/kept').read())"))
    finally:
        client.stop_channels()
        manager.shutdown_kernel()
print(json.dumps(said))
"""


def test_kernels_of_both_kinds_talk_are_interrupted_and_restarted(ordinary_user: OrdinaryUser, tmp_path: Path) -> None:
    home = ordinary_user.home
    archive = home / "ipy.tar"
    with Engine(tmp_path / "engine") as engine:
        engine.capture("localhost/ipy", packages=["ipykernel"])
        engine.save(["localhost/ipy"], archive, format="oci")
    runtime = home / "run"
    runtime.mkdir(mode=0o700)
    work = home / "work"
    work.mkdir()
    for path in (runtime, work, archive):
        ordinary_user.own(path)
    env = {
        "PYTHONPATH": str(packages_of(ordinary_user)),
        "SANDBOX_ROOT": str(home / "kernels"),
        "JUPYTER_PATH": str(home / "prefix/share/jupyter"),
        "XDG_RUNTIME_DIR": str(runtime),
    }

    def speak(*words: str) -> str:
        done = ordinary_user.run([SYSTEM_PYTHON, *words], env=env, cwd=work, timeout=110)
        assert done.returncode == 0, done.stderr
        return done.stdout

    speak("-m", "sandbox", "load", "-i", str(archive))
    for flags, network in ((["--name", "own"], "bridge"), (["--name", "ours", "--language", "python"], "none")):
        speak("-m", "sandbox", "kernel", "install", "localhost/ipy", "--prefix", str(home / "prefix"), *flags, "--network", network)
    said = json.loads(speak("-c", TALK, "own", "ours").splitlines()[-1])
    rest = ["on\nKeyboardInterrupt", "file\n"]
    assert said == {"own": [f"{work} 0 ['lo', 'eth0']\n", *rest], "ours": [f"{work} 0 ['lo']\n", *rest]}
    assert speak("-m", "sandbox", "ps", "-aq") == ""
    speak("-m", "sandbox", "network", "prune", "-f")
    assert list(runtime.glob("jsk-*")) == []
