"""The magics as a person sees them: a real JupyterLab in a real browser. Screenshots go to build/screenshots."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support.bad_registry import bad_registry, digest_of, held, layer_of
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


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[Lab]:
    """A JupyterLab with a busybox image in its engine; afterwards nothing of it is left."""
    place = tmp_path_factory.mktemp("lab")
    (place / "notebooks").mkdir()
    with Engine(place / "root") as engine:
        engine.import_image(busybox_tar, "localhost/box", changes=['CMD ["sh"]'])
    with jupyter_lab(place / "notebooks", place / "root") as running:
        yield running
    nothing_left(place)


@pytest.fixture(scope="session")
def notebook(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    """One notebook for all tests, with the extension loaded."""
    shots = request.config.rootpath / "build/screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        opened = Notebook.open(browser, lab, "browser.ipynb", shots)
        opened.run("%load_ext sandbox")
        yield opened


def test_build_shows_progress_then_a_table_of_layers(notebook: Notebook) -> None:
    cell = notebook.start(
        "%%dockerfile -t localhost/made\nFROM localhost/box\nRUN for i in 1 2 3 4; do echo line $i; sleep 0.4; done\n"
        "RUN echo done > /done\nENV WHO=world\n"
    )
    running = cell.locator(".sandbox-running")
    running.get_by_text("line 2").wait_for()
    notebook.screenshot("build-running", cell)
    notebook.wait_end(cell)
    assert running.count() == 0
    assert cell.locator(".sandbox-build tr").count() == 4
    assert "✓ localhost/made" in (cell.locator(".sandbox-build").text_content() or "")
    notebook.screenshot("build-done", cell)


def test_container_cell_streams_its_output(notebook: Notebook) -> None:
    cell = notebook.start("%%container localhost/box\necho first; sleep 1.5; echo second >&2; sleep 0.3; echo third")
    cell.get_by_text("first", exact=True).wait_for()
    assert cell.locator(".jp-OutputArea-output").get_by_text("third").count() == 0
    notebook.wait_end(cell)
    assert [text.strip() for text in cell.locator(".jp-OutputArea-output pre").all_text_contents()[:3]] == ["first", "second", "third"]
    assert "✓" in (cell.locator(".sandbox-usage").text_content() or "")
    notebook.screenshot("container", cell)


def test_a_pull_shows_bars_then_one_line(notebook: Notebook, busybox_tar: Path) -> None:
    gate = threading.Event()
    with bad_registry() as registry:
        big = layer_of("big", 3 << 20)
        registry.add_image("team/box:1", busybox_tar.read_bytes(), big, config={"Cmd": ["sh"], "Env": ["PATH=/bin"]})
        registry.fault("GET", f"/blobs/{digest_of(big)}", held(2 << 20, gate))
        cell = notebook.start(f"%%container {registry.host}/team/box:1\nls -l /big")
        running = cell.locator(".sandbox-transfer")
        running.locator("progress").wait_for()
        running.get_by_text(re.compile(r"[1-9][\d.]*[kM]B / 3\.15MB")).first.wait_for()
        notebook.screenshot("pull-running", cell)
        gate.set()
        notebook.wait_end(cell)
    assert running.count() == 0
    assert "✓ Pulled" in (cell.locator(".jp-OutputArea").text_content() or "")
    notebook.screenshot("pull-done", cell)


def test_error_is_a_few_lines_in_the_cells_own_numbers(notebook: Notebook) -> None:
    cell = notebook.run("%%dockerfile\nFROM localhost/box\nWORKDIR /app\nRUN echo look here >&2; exit 3\nENV A=1")
    text = cell.locator('[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]').last
    lines = (text.text_content() or "").rstrip().split("\n")
    assert lines[0] == "BuildError: RUN echo look here >&2; exit 3: exit code 3"
    assert lines[1].startswith("  cell line 4 of 5 | step 3/4 | stage ")
    assert lines[2:5] == ["    3 | WORKDIR /app", "  > 4 | RUN echo look here >&2; exit 3", "    5 | ENV A=1"]
    assert "Traceback" not in "".join(lines)
    notebook.screenshot("build-error", cell)
    failed = notebook.run("%%container -m 32m localhost/box\ntail /dev/zero")
    assert "out of memory: killed at the 32 MiB limit" in (failed.text_content() or "")
    notebook.screenshot("container-error", failed)


def test_interrupt_leaves_nothing_running(notebook: Notebook, lab: Lab) -> None:
    cell = notebook.start("%%container --name stuck localhost/box\necho started; sleep 1000")
    cell.get_by_text("started", exact=True).wait_for()
    with Engine(lab.root) as engine:
        assert [container.name for container in engine.containers()] == ["stuck"]
        notebook.page.locator('[data-command="notebook:interrupt-kernel"], [title^="Interrupt"]').first.click()
        notebook.wait_end(cell)
        assert engine.containers(all=True) == []
    assert (cell.locator(".jp-OutputArea-output").last.text_content() or "").startswith("KeyboardInterrupt: stopped")
    notebook.screenshot("interrupted", cell)


def test_tab_completes_flags_images_and_instructions(notebook: Notebook) -> None:
    assert {"--memory", "--memory-swap"} <= set(notebook.offers("%%container --mem"))
    assert "localhost/box" in notebook.offers("%%container localhost/")
    assert set(notebook.offers("%%dockerfile\nFROM localhost/box\nE")) == {"ENTRYPOINT ", "ENV ", "EXPOSE "}


def test_ps_is_a_table(notebook: Notebook) -> None:
    notebook.run("%container run -d --name steady localhost/box sleep 1000")
    cell = notebook.run("%container ps")
    try:
        table = cell.locator("table")
        assert table.locator("th").first.text_content() == "CONTAINER ID"
        assert "steady" in (table.text_content() or "")
        notebook.screenshot("ps", cell)
    finally:
        notebook.run("%container rm -f steady")
    notebook.screenshot("page")


def test_plot_table_and_frame_of_a_python_cell(notebook: Notebook) -> None:
    notebook.run("%container capture -t localhost/plots --packages matplotlib --packages pandas")
    plot = notebook.run("%%container --session s localhost/plots\nimport matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 4, 9]);")
    picture = plot.locator("img").first
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 200
    notebook.screenshot("plot", plot)
    table = notebook.run("%%container --session s\nimport pandas as pd\npd.DataFrame({'n': [1, 2], 'text': ['a<b', 'c']})")
    assert table.locator("td").all_text_contents() == ["1", "a<b", "2", "c"]
    notebook.screenshot("table", table)
    framed = notebook.run(
        "%%container --session s\nclass Page:\n    def _repr_html_(self):\n"
        "        return '<h3>A page</h3><script>parent.document.title = document.title = \"stolen\"</script>'\nPage()"
    )
    frame = framed.frame_locator("iframe")
    frame.get_by_text("A page").wait_for()
    assert "stolen" not in notebook.page.title()
    notebook.screenshot("frame", framed)
    failed = notebook.run("%%container --session s\ndef f(x):\n    return 1 / x\nf(0)")
    assert "line 3, in f" in (failed.text_content() or "")
    notebook.screenshot("python-error", failed)
    handle = notebook.run("%%container --bg --proc p localhost/box\necho up; sleep 1000")
    handle.locator(".sandbox-handle").wait_for()
    notebook.screenshot("background", handle)
    notebook.run("p.remove()")
    notebook.run("%container reset s")


def test_what_the_browser_saved_passes_strict_nbval(notebook: Notebook, lab: Lab) -> None:
    notebook.run("%container capture -t localhost/python")
    browser = notebook.page.context.browser
    assert browser is not None
    opened = Notebook.open(browser, lab, "saved.ipynb", notebook.shots)
    for text in (
        "%load_ext sandbox",
        "%%dockerfile -t localhost/kept\nFROM localhost/box\nRUN for i in 1 2 3; do echo line $i; sleep 0.3; done",
        "%%dockerfile\nRUN echo more > /more",
        "%%container localhost/kept\necho out; echo err >&2",
        "%%container --session p localhost/python\nhandle = display('0 %', display_id=True)\nimport time\n"
        "for n in range(0, 101, 25):\n    time.sleep(0.1); handle.update(f'{n} %')\nprint('done')\nn",
        "%%container --session p\nfrom IPython.display import HTML, Markdown, clear_output\nprint('gone')\nclear_output()\n"
        "display(Markdown('*a*'))\nopen('/out/t.csv', 'w').write('a,b\\n1,2\\n')\nHTML('<script>1</script><b>b</b>')",
        "%%container --no-raise-error --session p\n1 / 0",
        "%container sessions",
        "%container images",
        "%stages",
        "%container reset p",
    ):
        opened.run(text)
    opened.page.keyboard.press("Control+s")
    saved = lab.directory / "saved.ipynb"
    deadline = time.monotonic() + 20
    while '"%container reset p"' not in saved.read_text():
        assert time.monotonic() < deadline, "the notebook is not saved"
    opened.page.close()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval", saved.name]
    done = subprocess.run(
        command, cwd=lab.directory, env={**os.environ, "SANDBOX_ROOT": str(lab.root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "12 passed" in done.stdout  # the empty cell below too
    saved.write_text(saved.read_text().replace("line 3", "line 4").replace('"err\\n"', '"other\\n"'))
    done = subprocess.run(
        [*command, "-k", "Cell and 3"],
        cwd=lab.directory,
        env={**os.environ, "SANDBOX_ROOT": str(lab.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "a comparison that cannot fail"
