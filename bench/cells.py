"""`python -m bench.cells [-n RUNS]`: what a cell in a container costs, in a real kernel over real sockets, beside an ordinary cell.

A cell's time is from sending it to having all its output and its reply, as a front end sees it: an ordinary cell takes 4 to 5 ms of
that by itself, so what is ours is the difference to it, which is printed below each table beside what was aimed at. On a machine
with neighbours look at the smallest figures and at the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from bench.harness import Samples, command, interleave, show
from sandbox.engine import Engine
from sandbox.session.believed import CellCode
from sandbox.session.session import Session

IMAGE = "localhost/bench-python"
_PRINTING = "for n in range(200_000): print('%048d' % n)"  # 9.8 MB in lines
_WRITING = "import sys\nfor n in range(10): sys.stdout.write('x' * 1_000_000)"


class Cells:
    """A kernel, and cells of it as things to time."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self._client = client

    def run(self, code: str) -> None:
        """Run a cell to its end; RuntimeError when it fails."""
        reply = self._client.execute_interactive(code, output_hook=lambda message: None, timeout=120, allow_stdin=False)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{code}: {reply['content']['evalue']}")

    def case(self, code: str) -> Callable[[], object]:
        """The cell as a case."""
        return lambda: self.run(code)


@contextmanager
def kernel(directory: Path, root: Path) -> Iterator[Cells]:
    """An ordinary Python kernel with the extension, which ends afterwards."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "PYTEST_CURRENT_TEST")}
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(directory), env={**environment, "SANDBOX_ROOT": str(root)})
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        cells = Cells(client)
        cells.run("%load_ext sandbox")
        yield cells
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


class Nobody:
    """A front end that shows nothing."""

    def write(self, stream: str, data: bytes) -> None:
        """As Front."""

    def ask(self, prompt: str, password: bool) -> str | None:
        """As Front."""

    display = show_result = display_as = clear = write


def bench_session(root: Path, runs: int) -> None:
    """The round trip of a warm interpreter by itself, without a notebook around it."""
    with Engine(root) as engine:
        session = Session("api", IMAGE, lambda: engine.interpreter(IMAGE, ["python3"]))
        code = CellCode("x = 1")
        samples = interleave({"Session.run": lambda: session.run(code, Nobody())}, runs * 5)
        session.close()
    show("`x = 1` through the API", samples, "Session.run")
    print(f"\naimed at: 5 ms; median {statistics.median(samples['Session.run']):.1f} ms")


def told(samples: Samples, case: str, base: str, aim: float) -> None:
    """What the case takes beyond the base, least and median, beside the aim."""
    least = min(samples[case]) - min(samples[base])
    median = statistics.median(samples[case]) - statistics.median(samples[base])
    print(f"\n{case}: {least:.1f} ms (least), {median:.1f} ms (median) beyond {base}; aimed at: {aim:g} ms")


def bench_warm(cells: Cells, runs: int) -> None:
    """A cell whose interpreter is there already, and one more program in a container that is."""
    cells.run(f"%%container --session w {IMAGE}\npass")
    cells.run(f"%%container --session b {IMAGE} bash\n:")
    cells.run(f"%container run -d --name bench {IMAGE} sleep 10000")
    try:
        samples = interleave(
            {
                "plain cell": cells.case("x = 1"),
                "%%container --session (Python)": cells.case("%%container --session w\nx = 1"),
                "%%container --session --no-stats": cells.case("%%container --session w --no-stats\nx = 1"),
                "%%container --session (bash)": cells.case("%%container --session b\nx=1"),
                "%%container exec (Python)": cells.case("%%container exec --lang python bench\nx = 1"),
                "%%container exec … python3": cells.case("%%container exec bench python3\nx = 1"),
                "%%container exec … true": cells.case("%%container exec --lang sh bench\ntrue"),
            },
            runs,
        )
        show("`x = 1` in a warm interpreter", samples, "plain cell")
        told(samples, "%%container --session (Python)", "plain cell", 5)
    finally:
        cells.run("%container rm -f bench\n%container reset b")


def bench_fresh(cells: Cells, runs: int) -> None:
    """A cell in a container of its own, beside a bare interpreter."""
    samples = interleave(
        {
            "python3 -c (no container)": command(sys.executable, "-c", "x = 1"),
            "%%container (Python)": cells.case(f"%%container --network none {IMAGE}\nx = 1"),
            "%%sandbox (Python)": cells.case(f"%%sandbox {IMAGE}\nx = 1"),
            "%%container (sh)": cells.case(f"%%container --network none --lang sh {IMAGE}\ntrue"),
        },
        runs,
    )
    show("`x = 1` in a fresh container", samples, "python3 -c (no container)")
    told(samples, "%%container (Python)", "python3 -c (no container)", 25)


def bench_arrays(cells: Cells, runs: int) -> None:
    """100 MB in and out of a session."""
    cells.run("import numpy as np\nlarge = np.random.rand(100 * 2**20 // 8)")
    cells.run("%%container --session w -i large\nimport numpy as np\nback = large")
    show(
        "an array of 100 MiB",
        interleave(
            {
                "copied in the kernel": cells.case("copy = large.copy()"),
                "--in": cells.case("%%container --session w -i large\npass"),
                "--out-var": cells.case("%%container --session w -o back\npass"),
                "--in and --out-var": cells.case("%%container --session w -i large -o back\nback = large"),
            },
            max(3, runs // 5),
        ),
        "copied in the kernel",
    )


def bench_output(cells: Cells, runs: int) -> None:
    """10 MB printed: 200,000 lines, and ten large pieces (cells show the first MiB and the end)."""
    samples = interleave(
        {
            "lines, plain cell": cells.case(_PRINTING),
            "lines, session": cells.case(f"%%container --session w\n{_PRINTING}"),
            "lines, sh": cells.case(f"%%container --lang sh {IMAGE}\nyes {'0' * 48} | head -c 9800000"),
            "pieces, plain cell": cells.case(_WRITING),
            "pieces, session": cells.case(f"%%container --session w\n{_WRITING};"),
        },
        max(3, runs // 5),
    )
    show("10 MB printed", samples, "lines, plain cell")
    print("".join(f"\n{name}: {9.8e3 / min(times):.0f} MB/s at best" for name, times in samples.items()) + "\naimed at: 10 MB/s")


def main() -> None:
    """Run everything in a state directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.cells", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="counted runs of each case (a fifth of them of the large ones)")
    given = parser.parse_args()
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as scratch:
        root = Path(scratch) / "root"
        with Engine(root) as engine:
            engine.capture(IMAGE, packages=["numpy"])
        bench_session(root, given.n)
        with kernel(Path(scratch), root) as cells:
            bench_warm(cells, given.n)
            bench_fresh(cells, given.n)
            bench_arrays(cells, given.n)
            bench_output(cells, given.n)
            cells.run("%container reset w")
        subprocess.run([sys.executable, "-m", "sandbox", "--root", str(root), "container", "prune", "-f"], check=False, capture_output=True)


if __name__ == "__main__":
    main()
