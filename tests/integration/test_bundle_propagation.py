"""mount_namespaces(7): what is mounted below a bundle's bind mount after its start is seen on the other side as its options say."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bundles import Bundle, Json, Oci, created
from tests.support.host import requires

pytestmark = [requires("root"), pytest.mark.xdist_group("bundles")]


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A host directory on a mount that tells its peers of new mounts below it, as / does on hosts with systemd."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        (place / "host").mkdir()
        (place / "inside").mkdir()
        yield place
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)


@pytest.mark.parametrize(
    ("options", "root", "reaches_in", "reaches_out"),
    [
        ([], None, True, False),  # the root's own, which is rslave where nothing is said
        (["rprivate"], None, False, False),
        (["rslave"], None, True, False),
        (["rshared"], None, True, False),  # shared inside, but of a root that is a slave
        (["rshared"], "rshared", True, True),
        (["rprivate"], "rshared", False, False),
        (["rslave"], "rshared", True, False),
    ],
)
def test_mounts_spread_as_the_options_say(
    oci: Oci, bundle: Bundle, shared: Path, tmp_path: Path, options: list[str], root: str | None, reaches_in: bool, reaches_out: bool
) -> None:
    """As runc's do with the same bundle."""

    def change(config: Json) -> None:
        if root is not None:
            config["linux"]["rootfsPropagation"] = root
        config["mounts"].append({"destination": "/data", "source": str(shared), "options": ["rbind", *options]})
        for held in config["process"]["capabilities"].values():
            held.append("CAP_SYS_ADMIN")

    bundle.write("sleep", "1000", change=change)
    created(oci, bundle, "t-spread", tmp_path / "out")
    oci("start", "t-spread")

    subprocess.run(["mount", "-t", "tmpfs", "canary", shared / "host"], check=True)
    (shared / "host/canary").touch()
    seen = oci("exec", "t-spread", "ls", "/data/host").stdout.split()
    oci("exec", "t-spread", "mount", "-t", "tmpfs", "canary", "/data/inside")
    spread = os.path.ismount(shared / "inside")
    oci("kill", "t-spread", "KILL")

    assert (seen, spread) == (["canary"] if reaches_in else [], reaches_out)
