"""Debian's docker-registry on loopback, for tests: with or without htpasswd, TLS and token authentication."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "docker-registry"
_START_SECONDS = 30


@dataclass(frozen=True)
class RegistryServer:
    """A running registry: `host` is what image names begin with, `data` where its files are."""

    host: str
    data: Path
    log: Path

    def name(self, repository: str) -> str:
        """A name in it."""
        return f"{self.host}/{repository}"

    def wait_logged(self, text: str) -> None:
        """Until this stands in its log (it tells nobody when it has written)."""
        for _ in range(_START_SECONDS * 50):
            if text in self.log.read_text(errors="replace"):
                return
            threading.Event().wait(0.02)
        raise AssertionError(f"{text}: not in {self.log.read_text(errors='replace')}")

    def requests(self) -> list[str]:
        """`METHOD PATH STATUS` of every request it has answered well, in order."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("msg") == "response completed":
                found.append(f"{entry['http.request.method']} {entry['http.request.uri']} {entry['http.response.status']}")
        return found


def missing() -> str | None:
    """Why there can be none here."""
    return None if shutil.which(PROGRAM) else f"{PROGRAM} is not installed"


@contextmanager
def registry_server(directory: Path, *, settings: Sequence[str] = ()) -> Iterator[RegistryServer]:
    """A registry until the block ends. `settings`: lines of its configuration, below its top level."""
    directory.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    config, log = directory / "config.yml", directory / "log"
    tls = any(line.strip().startswith("certificate:") for line in settings)
    config.write_text(_config(directory / "data", port, settings))
    with log.open("wb") as out:
        process = subprocess.Popen([PROGRAM, "serve", str(config)], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=_environment())
    try:
        _wait_ready(process, port, log)
        yield RegistryServer(f"{'localhost' if tls else '127.0.0.1'}:{port}", directory / "data", log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def _config(data: Path, port: int, settings: Sequence[str]) -> str:
    lines = [
        "version: 0.1",
        "log: {level: info, formatter: json, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}",
        "http:",
        f"  addr: 127.0.0.1:{port}",
        *settings,
    ]
    return "\n".join(lines) + "\n"


def _environment() -> dict[str, str]:
    """Without OTEL and proxies; REGISTRY_ variables would change the configuration."""
    return {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it accepts: connecting is retried by the clock of waiting for its end, which must not come."""
    for _ in range(_START_SECONDS * 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"docker-registry ended: {log.read_text()}")
    raise AssertionError("docker-registry does not listen")


def fetch(url: str, accept: str = "*/*") -> bytes:
    """What the registry says without us in between."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        body: bytes = answer.read()
        return body
