"""mount_namespaces(7): what is mounted below a bundle's bind mount after its start is seen on the other side as its options say."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.bundles import Bundle, Json, Oci, created
from tests.support.host import requires

pytestmark = [requires("root"), pytest.mark.xdist_group("bundles")]


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
    oci: Oci,
    bundle: Bundle,
    shared_directory: Path,
    tmp_path: Path,
    options: list[str],
    root: str | None,
    reaches_in: bool,
    reaches_out: bool,
) -> None:
    """As runc's do with the same bundle."""

    def change(config: Json) -> None:
        if root is not None:
            config["linux"]["rootfsPropagation"] = root
        config["mounts"].append({"destination": "/data", "source": str(shared_directory), "options": ["rbind", *options]})
        for held in config["process"]["capabilities"].values():
            held.append("CAP_SYS_ADMIN")

    (shared_directory / "host").mkdir()
    bundle.write("sleep", "1000", change=change)
    created(oci, bundle, "t-spread", tmp_path / "out")
    oci("start", "t-spread")

    subprocess.run(["mount", "-t", "tmpfs", "canary", shared_directory / "host"], check=True)
    (shared_directory / "host/canary").touch()
    seen = oci("exec", "t-spread", "ls", "/data/host").stdout.split()
    oci("exec", "t-spread", "mount", "-t", "tmpfs", "canary", "/data/below")
    spread = os.path.ismount(shared_directory / "below")
    oci("kill", "t-spread", "KILL")

    assert (seen, spread) == (["canary"] if reaches_in else [], reaches_out)
