"""An ordinary user installs packages in a build: dpkg, apt's own user, set-group-id programs, new users."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support.host import requires
from tests.support.ordinary_user import ordinary_user, speaker

pytestmark = [
    requires("root", "userns", "overlay", "tool:mmdebstrap", "tool:newuidmap"),
    pytest.mark.xdist_group("debian"),
    pytest.mark.timeout(400),
]


@pytest.fixture(scope="module")
def bookworm(debian_tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian without the device nodes that nobody but root can unpack; images of registries have none."""
    made = tmp_path_factory.mktemp("bookworm") / "debian.tar"
    with tarfile.open(debian_tar) as source, tarfile.open(made, "w") as target:
        for member in source:
            if not member.isdev():
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    return made


INSTALL = (
    "FROM box\nRUN apt-get update -q && apt-get install -qy --no-install-recommends cron >/dev/null\n"
    "RUN useradd -m ann && su ann -c 'touch ~/hi; chmod 700 ~'\nUSER ann\n"
    "CMD id -un; ls ~; stat -c '%a %U %G' ~ /usr/bin/crontab /var/cache/apt/archives/partial /etc/shadow\n"
)


def test_packages_are_installed_for_real(bookworm: Path) -> None:
    with ordinary_user() as user:
        run = speaker(user, bookworm)
        (user.home / "Dockerfile").write_text(INSTALL)
        run("build", "-t", "installed", str(user.home), "-f", str(user.home / "Dockerfile"), check=True, timeout=100)
        assert run("run", "--rm", "installed", check=True).stdout == (
            "ann\nhi\n700 ann ann\n2755 root crontab\n700 _apt root\n640 root shadow\n"
        )
