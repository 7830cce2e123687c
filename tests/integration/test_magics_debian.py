"""`%install apt` for real, and R, which it installs: in cells and in sessions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support import debian
from tests.support.host import requires
from tests.support.kernel import Kernel, started_kernel
from tests.support.leftovers import nothing_left

pytestmark = [
    requires("root", "tool:mmdebstrap"),
    pytest.mark.xdist_group("debian"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def kernel(tmp_path: Path, debian_tar: Path) -> Iterator[Kernel]:
    """With an engine that has Debian's image."""
    root = tmp_path / "state"
    with Engine(root) as engine:
        engine.import_image(debian_tar, debian.IMAGE, changes=[debian.PATH])
    with started_kernel("python3", root, tmp_path, env={"SANDBOX_ROOT": str(root)}) as (_, opened):
        yield opened
    nothing_left(root)


def test_r_from_debians_packages_in_cells_and_sessions(kernel: Kernel) -> None:
    assert kernel.errors("%load_ext sandbox") == []
    assert kernel.errors(f"%%dockerfile\nFROM {debian.IMAGE}\nENV DEBIAN_FRONTEND=noninteractive") == []
    assert kernel.errors("%install -t localhost/r apt r-base-core") == []
    assert kernel.text("%%container --lang R localhost/r\nx <- 41\nx + 1") == "[1] 42\n"  # neither greeting nor echo
    assert kernel.text("%%container --session s localhost/r Rscript -\nwriteLines('kept', '/tmp/file'); cat(getwd())") == "/"
    assert kernel.errors("%%container --session s --lang bash\ncd /tmp") == []
    assert kernel.text("%%container --session s localhost/r Rscript -\ncat(getwd(), readLines('file'))") == "/tmp kept"
    kernel.run("%container reset s")
