"""`python -m bench.cells [-n RUNS]`: what a cell in a container costs, in a real kernel over real sockets, beside an ordinary cell.

A cell's time is from sending it to having all its output and its reply, as a front end sees it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from bench.harness import command, interleave, show
from sandbox.engine import Engine

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


def bench_warm(cells: Cells, runs: int) -> None:
    """A cell whose interpreter is there already, and one more program in a container that is."""
    cells.run(f"%%container --session w {IMAGE}\npass")
    cells.run(f"%%container --session b {IMAGE} bash\n:")
    cells.run(f"%container run -d --name bench {IMAGE} sleep 10000")
    try:
        show(
            "`x = 1` in a warm interpreter",
            interleave(
                {
                    "plain cell": cells.case("x = 1"),
                    "%%container --session (Python)": cells.case("%%container --session w\nx = 1"),
                    "%%container --session --no-stats": cells.case("%%container --session w --no-stats\nx = 1"),
                    "%%container --session (bash)": cells.case("%%container --session b\nx=1"),
                    "%%container exec … python3": cells.case("%%container exec bench python3\nx = 1"),
                    "%%container exec … true": cells.case("%%container exec --lang sh bench\ntrue"),
                },
                runs,
            ),
            "plain cell",
        )
    finally:
        cells.run("%container rm -f bench\n%container reset b")


def bench_fresh(cells: Cells, runs: int) -> None:
    """A cell in a container of its own, beside a bare interpreter."""
    show(
        "`x = 1` in a fresh container",
        interleave(
            {
                "python3 -c (no container)": command(sys.executable, "-c", "x = 1"),
                "%%container (Python)": cells.case(f"%%container {IMAGE}\nx = 1"),
                "%%sandbox (Python)": cells.case(f"%%sandbox {IMAGE}\nx = 1"),
                "%%container (sh)": cells.case(f"%%container --lang sh {IMAGE}\ntrue"),
            },
            runs,
        ),
        "python3 -c (no container)",
    )


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
    show(
        "10 MB printed",
        interleave(
            {
                "lines, plain cell": cells.case(_PRINTING),
                "lines, session": cells.case(f"%%container --session w\n{_PRINTING}"),
                "lines, sh": cells.case(f"%%container --lang sh {IMAGE}\nyes {'0' * 48} | head -c 9800000"),
                "pieces, plain cell": cells.case(_WRITING),
                "pieces, session": cells.case(f"%%container --session w\n{_WRITING};"),
            },
            max(3, runs // 5),
        ),
        "lines, plain cell",
    )


def main() -> None:
    """Run everything in a state directory of its own."""
    parser = argparse.ArgumentParser(prog="python -m bench.cells", description=__doc__)
    parser.add_argument("-n", type=int, default=30, help="counted runs of each case (a fifth of them of the large ones)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as scratch:
        root = Path(scratch) / "root"
        with Engine(root) as engine:
            engine.capture(IMAGE, packages=["numpy"])
        print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}")
        with kernel(Path(scratch), root) as cells:
            bench_warm(cells, given.n)
            bench_fresh(cells, given.n)
            bench_arrays(cells, given.n)
            bench_output(cells, given.n)
            cells.run("%container reset w")
        subprocess.run([sys.executable, "-m", "sandbox", "--root", str(root), "container", "prune", "-f"], check=False, capture_output=True)


if __name__ == "__main__":
    main()
