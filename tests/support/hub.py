"""A JupyterHub of the test's own that has spawned one person's single-user server.

Its proxy is left out: the server is asked where it listens. That it listens, whom it lets in and when it goes is the hub's.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from tests.support.lab import Lab, ask, end_server, free_port

PERSON = "ada"
_PATIENCE = 120
_CONFIG = """\
import json, os, sys
from jupyterhub.proxy import Proxy

settings = json.loads(os.environ["HUB_SETTINGS"])
c = get_config()


class Places(Proxy):
    should_start = False
    routes = {}

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}
        with open(settings["routes"] + ".new", "w") as file:
            json.dump({route: each["target"] for route, each in self.routes.items()}, file)
        os.rename(settings["routes"] + ".new", settings["routes"])

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return dict(self.routes)


c.JupyterHub.proxy_class = Places
c.JupyterHub.bind_url = settings["url"]
c.JupyterHub.hub_port = settings["port"]
c.JupyterHub.db_url = "sqlite:///:memory:"
c.JupyterHub.cookie_secret = os.urandom(32)
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{"name": "tests", "api_token": settings["token"]}]
c.JupyterHub.load_roles = [
    {"name": "tests", "services": ["tests"], "scopes": ["admin:users", "admin:servers", "access:servers"]},
]
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = settings["home"]
c.Spawner.env_keep = ["PATH", "LANG", "SANDBOX_ROOT", "SANDBOX_NETWORK", "JUPYTER_PATH"]
c.Spawner.environment = settings["environment"]
c.Spawner.cmd = [sys.executable, "-m", "jupyterhub.singleuser"]
c.Spawner.args = ["--allow-root"]
c.Spawner.notebook_dir = settings["directory"]
"""


@contextlib.contextmanager
def single_user_server(directory: Path, root: Path) -> Iterator[tuple[Lab, Lab]]:
    """The hub (its API below `url`) and PERSON's server, which serves `directory`; afterwards no process of them is left."""
    private, port, token = directory.parent / "hub", free_port(), secrets.token_hex(16)
    (private / "home").mkdir(parents=True)
    private.chmod(0o700)
    (private / "config.py").write_text(_CONFIG)
    settings = {
        "url": f"http://127.0.0.1:{free_port()}",
        "port": port,
        "token": token,
        "routes": str(private / "routes.json"),
        "home": str(private / "home"),
        "directory": str(directory),
        "environment": {"JUPYTER_RUNTIME_DIR": str(private / "runtime"), "IPYTHONDIR": str(private / "ipython")},
    }
    env = {**os.environ, "HUB_SETTINGS": json.dumps(settings), "SANDBOX_ROOT": str(root)}
    argv = [sys.executable, "-m", "jupyterhub", "-f", str(private / "config.py")]
    with (private / "log.txt").open("wb") as log:
        process = subprocess.Popen(argv, env=env, cwd=private, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    hub = Lab(f"http://127.0.0.1:{port}/hub", token, directory, root, process, private)
    try:
        _until(hub, "api/")
        ask(hub.url, f"api/users/{PERSON}", token, method="POST")
        ask(hub.url, f"api/users/{PERSON}/server", token, method="POST")
        _until(hub, f"api/users/{PERSON}", ready=True)
        place = json.loads((private / "routes.json").read_text())[f"/user/{PERSON}/"]
        yield hub, Lab(f"{place}/user/{PERSON}", token, directory, root, process, private)
    finally:
        end_server(process)


def _until(hub: Lab, path: str, *, ready: bool = False) -> None:
    """Until it answers, and the server it tells of is `ready`."""
    for _ in range(_PATIENCE * 10):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            answer = hub.ask(path)
            if not ready or any(each["ready"] for each in answer["servers"].values()):
                return
        try:
            hub.process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"jupyterhub ended:\n{hub.log[-4000:]}")
    raise AssertionError(f"jupyterhub does not get so far:\n{hub.log[-4000:]}")
