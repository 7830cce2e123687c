"""A JupyterLab of the test's own, in headless Chromium: start it, type into a notebook, look at what a person would see."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

_START_SECONDS = 60
_QUIET = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/application-extension:logo": {},
}
_EMPTY = {"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}}, "nbformat": 4, "nbformat_minor": 5}


@dataclass(frozen=True)
class Lab:
    """A running server: its address, its token, the directory it shows and the root of the engines in its kernels; its process, and the
    directory of its own files."""

    url: str
    token: str
    directory: Path
    root: Path
    process: subprocess.Popen[bytes]
    private: Path

    @property
    def log(self) -> str:
        """What it has written until now."""
        return (self.private / "log.txt").read_text()

    def ask(self, path: str, body: object = None) -> Any:
        """GET, or POST with a body; the JSON of the answer."""
        return ask(self.url, path, self.token, body)


def ask(url: str, path: str, token: str, body: object = None, method: str | None = None) -> Any:
    """A request to a Jupyter server or hub; the JSON of the answer, None when it has none."""
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", data, headers, method=method), timeout=60) as answer:
        return json.loads(answer.read() or "null")


@contextlib.contextmanager
def jupyter_lab(directory: Path, root: Path, *, name: str = "jupyter") -> Iterator[Lab]:
    """Serve `directory` on a free loopback port until the block ends; afterwards no process of it is left. What it writes for itself is
    beside the directory, by its `name`. Notebook 7 and Voilà are in it, too."""
    port, token = free_port(), secrets.token_hex(16)
    private = directory.parent / name
    (private / "settings").mkdir(parents=True)
    (private / "settings/overrides.json").write_text(json.dumps(_QUIET))
    (private / "home").mkdir()
    env = {
        **os.environ,
        "HOME": str(private / "home"),
        "SANDBOX_ROOT": str(root),
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "user-settings"),
    }
    env.pop("PYTEST_CURRENT_TEST", None)  # kernels would take themselves for nbval's and show no live progress
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ServerApp.ip=127.0.0.1"]
    argv += [f"--IdentityProvider.token={token}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={directory}"]
    argv += ["--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"]
    argv += [f"--LabApp.app_settings_dir={private / 'settings'}"]
    with (private / "log.txt").open("wb") as log:
        server = subprocess.Popen(argv, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_serving(server, f"http://127.0.0.1:{port}", token, private / "log.txt")
        yield Lab(f"http://127.0.0.1:{port}", token, directory, root, server, private)
    finally:
        end_server(server)


def free_port() -> int:
    """One on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_serving(server: subprocess.Popen[bytes], url: str, token: str, log: Path) -> None:
    request = urllib.request.Request(f"{url}/api/status", headers={"Authorization": f"token {token}"})
    for _ in range(_START_SECONDS * 10):
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(request, timeout=5):
            return
        try:
            server.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(f"jupyter lab ended:\n{log.read_text()[-4000:]}")
    raise AssertionError(f"jupyter lab does not answer:\n{log.read_text()[-4000:]}")


def end_server(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM ends the server and its kernels; SIGKILL only what does not listen."""
    if server.poll() is not None:
        return
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        raise


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium, headless: Playwright's download is not needed."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    assert program, "chromium: not installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


class Notebook:
    """A notebook in a browser page, used by keyboard and mouse."""

    def __init__(self, page: Page, shots: Path) -> None:
        self.page = page
        self.shots = shots

    @classmethod
    def open(cls, browser: Browser, lab: Lab, name: str, shots: Path) -> Notebook:
        """A new notebook, its kernel ready."""
        (lab.directory / name).write_text(json.dumps(_EMPTY))
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(30_000)
        page.goto(f"{lab.url}/lab/workspaces/{Path(name).stem}/tree/{name}?reset&token={lab.token}")
        page.locator(".jp-Notebook").wait_for()
        page.keyboard.press("Control+b")  # more room
        page.get_by_text("| Idle").wait_for()
        return cls(page, shots)

    @classmethod
    def launch(cls, browser: Browser, lab: Lab, kernel: str, shots: Path, *, picture: str | None = None) -> Notebook:
        """A new notebook by the launcher's card of that kernel; a `picture` of the launcher on the way."""
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(30_000)
        page.goto(f"{lab.url}/lab/workspaces/launcher?reset&token={lab.token}")
        card = page.locator(f'.jp-LauncherCard[data-category="Notebook"][title^="{kernel}"]')
        card.wait_for()
        made = cls(page, shots)
        if picture:
            made.screenshot(picture)
        card.click()
        page.locator(".jp-Notebook").wait_for()
        page.keyboard.press("Control+b")  # more room
        page.get_by_text("| Idle").wait_for()
        return made

    @classmethod
    def open_classic(cls, browser: Browser, lab: Lab, name: str, kernel: str, display_name: str, shots: Path) -> Notebook:
        """A new notebook for that kernel in Notebook 7, its kernel ready."""
        kernelspec = {"name": kernel, "display_name": display_name}
        (lab.directory / name).write_text(json.dumps({**_EMPTY, "metadata": {"kernelspec": kernelspec}}))
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(30_000)
        page.goto(f"{lab.url}/notebooks/{name}?token={lab.token}")
        page.locator(".jp-Toolbar-kernelName").get_by_text(display_name).wait_for()  # it is idle before it has a kernel, too
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        return cls(page, shots)

    @property
    def _cells(self) -> Locator:
        return self.page.locator(".jp-Notebook .jp-CodeCell")

    def type(self, text: str) -> Locator:
        """Put text into the last, empty cell; the cell."""
        cell = self._cells.last
        cell.locator(".cm-content").click()
        cell.locator(".cm-editor.cm-focused").wait_for()
        self.page.keyboard.insert_text(text)
        return cell

    def start(self, text: str) -> Locator:
        """Type a cell and run it with Shift+Enter, which opens the next; the cell, which may still run."""
        number = self._cells.count()
        self.type(text)
        self.page.keyboard.press("Shift+Enter")
        self._cells.nth(number).wait_for()
        return self._cells.nth(number - 1)

    def run(self, text: str) -> Locator:
        """Type a cell, run it to its end; the cell."""
        cell = self.start(text)
        self.wait_end(cell)
        return cell

    def rerun(self, cell: Locator, text: str) -> None:
        """Replace a cell's text and run it to its end."""
        before = cell.locator(".jp-InputPrompt").first.text_content()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)
        self.page.keyboard.press("Shift+Enter")
        again = "([cell, before]) => cell.querySelector('.jp-InputPrompt').textContent != before"
        self.page.wait_for_function(again, arg=[cell.element_handle(), before])
        self.wait_end(cell)

    def restart(self) -> None:
        """Restart the kernel by its button, and wait for it."""
        self.page.locator('[data-command="kernelmenu:restart"], [data-command="notebook:restart-kernel"]').first.click()
        self.page.locator(".jp-Dialog .jp-mod-accept").click()
        self.page.get_by_text("| Idle").wait_for()

    def save(self) -> None:
        """Save it under the name it has."""
        self.page.keyboard.press("Control+s")
        self.page.locator(".jp-Dialog .jp-mod-accept").click()  # asks for a better one, once
        self.page.wait_for_function("document.querySelector('.jp-mod-dirty') === null")

    def wait_end(self, cell: Locator) -> None:
        """Until the cell has its number."""
        ended = "cell => /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt').textContent)"
        try:
            self.page.wait_for_function(ended, arg=cell.element_handle())
        except BaseException:
            self.screenshot("cell-does-not-end")
            raise

    def offers(self, text: str) -> list[str]:
        """What Tab offers after typing `text` into the last cell, which is empty again afterwards."""
        self.type(text)
        self.page.keyboard.press("Tab")
        items = self.page.locator(".jp-Completer:not(.lm-mod-hidden) .jp-Completer-item")
        items.first.wait_for()
        found = [item.locator(".jp-Completer-match").text_content() or "" for item in items.all()]
        self.screenshot("completion-" + "".join(c for c in text.split("\n")[-1] if c.isalnum()))
        self.page.keyboard.press("Escape")
        self.page.keyboard.press("Control+a")
        self.page.keyboard.press("Delete")
        return found

    def screenshot(self, name: str, cell: Locator | None = None) -> None:
        """Save what is to be seen as NAME.png."""
        if cell is not None:
            cell.scroll_into_view_if_needed()
            cell.screenshot(path=self.shots / f"{name}.png")
        else:
            self.page.screenshot(path=self.shots / f"{name}.png")
