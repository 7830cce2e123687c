"""Fixtures of the integration tests alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from sandbox.runtime.bundle.states import States
from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox
from tests.support.bundles import Bundle, Oci, make_bundle
from tests.support.command_line import CommandLine, command_line
from tests.support.debian import make_debian_tar
from tests.support.ordinary_user import OrdinaryUser, packages_of


@pytest.fixture
def sandbox(tmp_path: Path, busybox_tar: Path) -> Iterator[CommandLine]:
    """The command, with an engine of its own that has the image busybox."""
    with command_line(tmp_path / "engine", (busybox_tar, "busybox")) as made:
        yield made


@pytest.fixture
def bundle(tmp_path: Path, busybox_tar: Path) -> Bundle:
    """An OCI bundle of busybox, without a config yet."""
    return make_bundle(tmp_path / "bundle", busybox_tar)


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[Oci]:
    """`sandbox-oci` with a state directory of its own; afterwards its containers are deleted and their groups are gone."""
    command = Oci(tmp_path / "state")
    yield command
    for container_id in command.ids():
        command("delete", "--force", container_id)
    names = {States(command.root).group_name(name) for name in command.used}
    assert not [group for group in Path("/sys/fs/cgroup").glob("**/sandbox-oci/*") if group.name in names]


@pytest.fixture(scope="session")
def packages(ordinary_user: OrdinaryUser) -> Path:
    """Our code and what it needs, where that user may read it."""
    return packages_of(ordinary_user)


@pytest.fixture(scope="module")
def whose(request: pytest.FixtureRequest) -> OrdinaryUser | None:
    """Whose engine it is: an ordinary user's, else root's."""
    return request.getfixturevalue("ordinary_user") if request.param != "root's" else None


@pytest.fixture(scope="session")
def debian_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian; half a minute, so what uses it is in one xdist group."""
    return make_debian_tar(tmp_path_factory.mktemp("debian") / "debian.tar")


@pytest.fixture(scope="session")
def ipykernel_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For `kernel_place`: its engine has the image localhost/ipy, made once for all files of tests about kernels."""
    base = tmp_path_factory.mktemp("ipykernel")
    with Engine(base / "root") as engine:
        engine.capture("localhost/ipy", packages=["ipykernel"])
    return base


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    """A builder with real containers, and busybox as base."""
    runtime = Runtime(tmp_path / "store")
    made = Workshop(tmp_path, runtime)
    made.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP}, fill=fill_busybox)
    yield made
    runtime.close()


@pytest.fixture
def shared_directory(tmp_path: Path) -> Iterator[Path]:
    """A host directory on a mount that tells its peers of new mounts below it, as / does on hosts with systemd."""
    place = tmp_path / "shared"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", place], check=True)
    try:
        subprocess.run(["mount", "--make-shared", place], check=True)
        (place / "below").mkdir()
        yield place
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)
