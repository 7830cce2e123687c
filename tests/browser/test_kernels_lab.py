"""Containerised kernels as a person sees them: chosen in JupyterLab's launcher, in a real browser. Screenshots go to build/screenshots."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from sandbox.engine import Engine
from tests.support.host import requires
from tests.support.kernel import SOCKET_WARNINGS, kernel_place
from tests.support.lab import Lab, Notebook, chromium, jupyter_lab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    requires("tool:chromium"),
    pytest.mark.xdist_group("browser"),
    *SOCKET_WARNINGS,
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with a kernel of an image that has ipykernel, matplotlib and ipywidgets."""
    with kernel_place(tmp_path_factory.mktemp("kernellab")) as place:
        place.engine.capture("localhost/science", packages=["ipykernel", "matplotlib", "ipywidgets"])
        place.install("localhost/science", "--display-name", "My science", "-m", "300m", "--network", "none")
        with jupyter_lab(place.work, place.root) as running:
            yield running


@pytest.fixture(scope="module")
def shots(request: pytest.FixtureRequest) -> Path:
    made = Path(request.config.rootpath / "build/screenshots")
    made.mkdir(parents=True, exist_ok=True)
    return made


LOOK = "import os, socket; print(os.getppid(), [name for _, name in socket.if_nameindex()])"
PLOT = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 4, 9]);"
SLIDER = "import ipywidgets\nw = ipywidgets.interactive(lambda n: print('square', n * n), n=(0, 9))\nw"


def has_picture(area: Locator) -> bool:
    """Whether there is a plot in it, as wide as one is."""
    picture = area.locator("img").first
    picture.wait_for()
    return bool(picture.evaluate("image => image.naturalWidth > 200"))


def move_slider(page: Page, area: Locator) -> None:
    """From 4 to 5 of 9, by mouse; the kernel says what it sees."""
    area.get_by_text("square 16", exact=True).wait_for()
    handle, track = area.locator(".noUi-handle"), area.locator(".noUi-connects")
    handle.hover()
    page.mouse.down()
    box = track.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 5 / 9, box["y"] + box["height"] / 2)
    page.mouse.up()
    area.get_by_text("square 25", exact=True).wait_for()


def test_kernel_of_an_image_is_chosen_in_the_launcher_plots_slides_and_says_why_it_died(lab: Lab, shots: Path) -> None:
    with chromium() as browser:
        notebook = Notebook.launch(browser, lab, "My science", shots, picture="kernel-launcher")
        assert "1 ['lo']" in (notebook.run(LOOK).text_content() or "")
        assert has_picture(notebook.run(PLOT))
        slider = notebook.run(SLIDER)
        move_slider(notebook.page, slider)
        assert "5" in (notebook.run("w.children[0].value").locator(".jp-OutputArea").text_content() or "")
        notebook.screenshot("kernel-slider", slider)
        notebook.start("hog = bytearray(1 << 30)")
        notebook.page.get_by_text("Kernel Restarting").wait_for()
        notebook.screenshot("kernel-restarting")
        notebook.page.get_by_role("button", name="Ok", exact=True).click()
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
        assert has_picture(notebook.run("import matplotlib.pyplot as plt\nplt.plot([1, 4, 9]);"))
        notebook.screenshot("kernel-sandbox")
        notebook.run("kept = open('/kept', 'w').write('file')")
        notebook.rerun(built, "%%dockerfile -t localhost/mine\nFROM localhost/science\nENV WHO=moon\n")
        built.get_by_text("restart the kernel, or run %container reset kernel").wait_for()
        notebook.screenshot("kernel-sandbox-rebuilt")
        look = "import os\nprint(os.environ['WHO'], os.path.exists('/kept'))"
        assert "world True" in (notebook.run(look).text_content() or "")  # in the image before, with its variables
        notebook.restart()
        assert "moon False" in (notebook.run(look).text_content() or "")
        notebook.run("kept = open('/kept', 'w').write('file')")
        notebook.restart()
        assert "moon True" in (notebook.run(look).text_content() or "")
        notebook.screenshot("kernel-sandbox-restarted")
        notebook.save()
        saved = next(text for path in lab.directory.glob("*.ipynb") if "localhost/mine" in (text := path.read_text()))
        facts = json.loads(saved)
        with Engine(lab.root) as engine:
            digest = str(engine.image("localhost/mine").id)
        assert facts["cells"][0]["outputs"][-1]["metadata"]["org.jupyter.sandbox"]["environment"]["digest"] == digest


def test_notebook_7_starts_it_plots_slides_interrupts_and_restarts(lab: Lab, shots: Path) -> None:
    with chromium() as browser:
        notebook = Notebook.open_classic(browser, lab, "classic.ipynb", "science", "My science", shots)
        page = notebook.page
        assert "1 ['lo']" in (notebook.run(LOOK).text_content() or "")
        assert has_picture(notebook.run(PLOT))
        slider = notebook.run(SLIDER)
        move_slider(page, slider)
        notebook.screenshot("kernel-notebook-7")
        stuck = notebook.start("print('started'); import time; time.sleep(1000)")
        stuck.get_by_text("started", exact=True).wait_for()
        page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
        stuck.get_by_text("KeyboardInterrupt", exact=True).first.wait_for()
        notebook.run("open('/kept', 'w').write('kept')")
        page.locator('[data-command="notebook:restart-kernel"]').first.click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        page.get_by_role("dialog").wait_for(state="detached")
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        after = notebook.run("print('os' in globals(), open('/kept').read())")
        assert "False kept" in (after.text_content() or "")
        notebook.screenshot("kernel-notebook-7-restarted", after)


def test_voila_shows_a_notebook_whose_kernel_is_contained(lab: Lab, shots: Path) -> None:
    cells = [nbformat.v4.new_markdown_cell("# Dashboard"), *(nbformat.v4.new_code_cell(text) for text in (LOOK, SLIDER, PLOT))]
    metadata = {"kernelspec": {"name": "science", "display_name": "My science", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), lab.directory / "dashboard.ipynb")
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(30_000)
        page.goto(f"{lab.url}/voila/render/dashboard.ipynb?token={lab.token}")
        everything = page.locator("body")
        everything.get_by_text("1 ['lo']", exact=True).wait_for()
        move_slider(page, everything)
        assert has_picture(everything)
        page.screenshot(path=shots / "kernel-voila.png", full_page=True)
