"""Containerised kernels as a person sees them: chosen in JupyterLab's launcher, in a real browser. Screenshots go to build/screenshots."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.lab import Lab, Notebook, chromium, jupyter_lab
from tests.support.leftovers import nothing_left

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    requires("tool:chromium"),
    pytest.mark.xdist_group("browser"),
    # Playwright's loop and pipes are its own to close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, sandbox_command: list[str]) -> Iterator[Lab]:
    """A JupyterLab with a kernel of an image that has ipykernel, matplotlib and ipywidgets."""
    place = tmp_path_factory.mktemp("kernellab")
    (place / "notebooks").mkdir()
    with Engine(place / "root") as engine, pytest.MonkeyPatch.context() as patch:
        engine.capture("localhost/science", packages=["ipykernel", "matplotlib", "ipywidgets"])
        patch.setenv("JUPYTER_PATH", str(place / "prefix/share/jupyter"))
        patch.setenv("SANDBOX_ROOT", str(place / "root"))
        patch.setenv("IPYTHONDIR", str(place / "ipython"))
        flags = ["--prefix", str(place / "prefix"), "--display-name", "My science", "-m", "300m", "--network", "none"]
        subprocess.run([*sandbox_command, "kernel", "install", "localhost/science", *flags], check=True, capture_output=True)
        with jupyter_lab(place / "notebooks", place / "root") as running:
            yield running
        assert engine.containers(all=True) == []
    nothing_left(place)


@pytest.fixture(scope="module")
def shots(request: pytest.FixtureRequest) -> Path:
    made = Path(request.config.rootpath / "build/screenshots")
    made.mkdir(parents=True, exist_ok=True)
    return made


def test_kernel_of_an_image_is_chosen_in_the_launcher_plots_slides_and_says_why_it_died(lab: Lab, shots: Path) -> None:
    with chromium() as browser:
        notebook = Notebook.launch(browser, lab, "My science", shots, picture="kernel-launcher")
        where = notebook.run("import os, socket; print(os.getppid(), [name for _, name in socket.if_nameindex()])")
        assert "1 ['lo']" in (where.text_content() or "")
        plot = notebook.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 4, 9]);")
        picture = plot.locator("img").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 200
        slider = notebook.run("import ipywidgets\nw = ipywidgets.interactive(lambda n: print('square', n * n), n=(0, 9))\nw")
        slider.get_by_text("square 16", exact=True).wait_for()
        handle = slider.locator(".noUi-handle")
        handle.focus()
        notebook.page.keyboard.press("ArrowRight")
        slider.get_by_text("square 25", exact=True).wait_for()
        notebook.screenshot("kernel-slider", slider)
        notebook.start("hog = bytearray(1 << 30)")
        notebook.page.get_by_text("Kernel Restarting").wait_for()
        notebook.screenshot("kernel-restarting")
        notebook.page.get_by_role("button", name="Ok").click()
        notebook.page.get_by_text("| Idle").wait_for()
        after = notebook.run("print('again')")
        after.get_by_text("The kernel before this one ended: out of memory: killed at the 300 MiB limit").wait_for()
        notebook.screenshot("kernel-after-oom", after)


def test_sandbox_notebook_runs_its_cells_in_what_its_first_cell_builds(lab: Lab, shots: Path) -> None:
    with chromium() as browser:
        notebook = Notebook.launch(browser, lab, "Sandbox", shots)
        built = notebook.run("%%dockerfile -t localhost/mine\nFROM localhost/science\nENV WHO=world\n")
        built.get_by_text("environment: localhost/mine").wait_for()
        greeting = notebook.run("import os\nprint('hello', os.environ['WHO'], os.getpid())")
        assert "hello world" in (greeting.text_content() or "")
        plot = notebook.run("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9]);")
        plot.locator("img").first.wait_for()
        notebook.screenshot("kernel-sandbox")
