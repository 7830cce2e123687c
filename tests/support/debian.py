"""A base image of Debian, as mmdebstrap makes it with this host's own package sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

IMAGE = "localhost/debian"
PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SOURCES = "/etc/apt"


def make_debian_tar(target: Path) -> Path:
    """A minimal Debian of this host's release as a tar; its apt is set up as ours is."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    sources = [path for path in (Path(_SOURCES, "sources.list"), *sorted(Path(_SOURCES, "sources.list.d").iterdir())) if path.is_file()]
    options = sorted(Path(_SOURCES, "apt.conf.d").glob("99*"))
    copies = [f"--customize-hook=upload {path} {path}" for path in (*sources, *options)]
    own = '--customize-hook=rm -f "$1"/etc/apt/sources.list'  # mmdebstrap's
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", own, *copies]
    if not any(path.suffix == ".sources" or "deb " in path.read_text() for path in sources):
        raise AssertionError("this host has no package sources")
    subprocess.run([*argv, release["VERSION_CODENAME"], str(target)], check=True, stdin=subprocess.DEVNULL)
    return target
