"""`image copy` between every two kinds of places, and manifest lists; skopeo reads what is written, and writes what is read."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any  # skopeo's JSON

import pytest

from sandbox import Engine
from sandbox.errors import ImageError, InvalidOption
from tests.support import image_verify, registry
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires
from tests.support.registry import RegistryServer, registry_server

pytestmark = [requires("root", "tool:skopeo"), pytest.mark.skipif(registry.missing() is not None, reason=str(registry.missing()))]
PLATFORMS = {"amd": ("amd64", None), "arm": ("arm64", "v8")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with registry_server(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("copies") / "root", (busybox_tar, "busybox")) as made:
        for name in PLATFORMS:
            text = f'FROM busybox\nRUN echo {name} > /said\nCMD ["cat", "/said"]\n'
            made.ok("build", "-q", "-t", f"app:{name}", "-", stdin=text.encode())
        yield made
        made.ok("prune", "-f")
        image_verify.verify_store(made.root)


@pytest.fixture(scope="module")
def pushed(sandbox: CommandLine, server: RegistryServer) -> str:
    """A list of both, in the registry."""
    name = server.name("team/multi:1")
    sandbox.ok("manifest", "create", name, "app:amd")
    sandbox.ok("manifest", "add", name, "app:arm", "--arch", "arm64", "--variant", "v8", "--annotation", "who=me")
    sandbox.ok("manifest", "push", name)
    return name


@pytest.fixture(scope="module")
def opened(sandbox: CommandLine) -> Iterator[Engine]:
    """The same store, without a process a copy."""
    with Engine(sandbox.root) as made:
        yield made


def said(opened: Engine, name: str) -> str:
    """What a container of this image prints."""
    return opened.run(name).stdout.decode().strip()


def skopeo(*argv: str) -> str:
    done = subprocess.run(["skopeo", "--insecure-policy", *argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def raw(place: str) -> Any:
    return json.loads(skopeo("inspect", "--raw", *(["--tls-verify=false"] if place.startswith("docker:") else []), place))


def digest_of(place: str) -> str:
    text = skopeo("inspect", "--raw", *(["--tls-verify=false"] if place.startswith("docker:") else []), place)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# Copies


def test_an_image_goes_from_place_to_place_byte_for_byte(opened: Engine, server: RegistryServer, tmp_path: Path) -> None:
    places = [
        "app:amd",
        f"docker://{server.name('one/app:1')}",
        f"oci:{tmp_path}/layout:first",
        f"dir:{tmp_path}/dir",
        f"oci-archive:{tmp_path}/x.tar:first",
        f"docker://{server.name('two/app:1')}",
        f"docker://{server.name('three/app:1')}",
        "store:back:1",
        f"docker://{server.name('four/app:1')}",
    ]
    digests = [opened.copy_image(source, target).digest for source, target in pairwise(places)]
    assert len(set(digests)) == 1
    assert {digest_of(place) for place in places if not place.startswith(("app:", "store:"))} == set(digests)
    assert said(opened, "back:1") == "amd"


def test_what_skopeo_writes_is_read_and_copied(opened: Engine, tmp_path: Path) -> None:
    opened.copy_image("app:amd", f"oci:{tmp_path}/layout:a")
    opened.copy_image("app:arm", f"oci:{tmp_path}/layout:b")
    for place in (f"dir:{tmp_path}/dir", f"docker-archive:{tmp_path}/docker.tar:some/app:2", f"oci-archive:{tmp_path}/oci.tar:x"):
        skopeo("copy", f"oci:{tmp_path}/layout:a", place)
        transport = place.partition(":")[0]
        opened.copy_image(place, f"got:{transport}")
        assert said(opened, f"got:{transport}") == "amd"
    opened.copy_image(f"oci:{tmp_path}/layout:b", "got:b")
    assert said(opened, "got:b") == "arm"
    with pytest.raises(ImageError, match="several images") as told:
        opened.copy_image(f"oci:{tmp_path}/layout", "got:c")
    assert told.value.hint == "there is: a, b"


def test_a_docker_archive_is_skopeos_and_ours(opened: Engine, tmp_path: Path) -> None:
    opened.copy_image("app:amd", f"docker-archive:{tmp_path}/x.tar:some/app:2")
    shown = json.loads(skopeo("inspect", f"docker-archive:{tmp_path}/x.tar:some/app:2"))
    assert shown["Architecture"] == "amd64"
    assert [name for name, _ in opened.load(tmp_path / "x.tar")] == ["some/app:2"]
    opened.copy_image(f"docker-archive:{tmp_path}/x.tar", "again")
    assert said(opened, "again") == "amd"


def test_an_index_is_copied_whole_or_by_platform(opened: Engine, pushed: str, server: RegistryServer, tmp_path: Path) -> None:
    whole = digest_of(f"docker://{pushed}")
    places = [f"docker://{pushed}", f"oci:{tmp_path}/layout:all", f"oci-archive:{tmp_path}/x.tar", f"dir:{tmp_path}/dir"]
    for source, target in pairwise([*places, f"docker://{server.name('other/multi:1')}"]):
        assert opened.copy_image(source, target, everything=True).digest == whole
    assert raw(f"docker://{server.name('other/multi:1')}") == raw(f"docker://{pushed}")
    for name, (architecture, _) in PLATFORMS.items():
        opened.copy_image(f"oci-archive:{tmp_path}/x.tar", f"one:{name}", platform=f"linux/{architecture}")
        assert said(opened, f"one:{name}") == f"{name}"
    for target in ("one:all", f"docker-archive:{tmp_path}/y.tar"):
        with pytest.raises(InvalidOption):
            opened.copy_image(f"docker://{pushed}", target, everything=True)
    assert not (tmp_path / "y.tar").exists()


def test_a_copy_within_a_registry_moves_no_layer(sandbox: CommandLine, pushed: str, server: RegistryServer) -> None:
    before = len(server.requests())
    sandbox.ok("image", "copy", "--all", f"docker://{pushed}", f"docker://{server.name('mounted/multi:1')}")
    asked = server.requests()[before:]
    assert [line for line in asked if line.startswith("POST") and "mount=" in line and line.endswith(" 201")]
    assert not [line for line in asked if line.startswith(("PATCH", "PUT")) and "/blobs/" in line]
    assert not [line for line in asked if line.startswith("GET") and "/blobs/" in line]


def test_a_layer_that_is_another_than_its_digest_says_is_not_copied(sandbox: CommandLine, server: RegistryServer, tmp_path: Path) -> None:
    sandbox.ok("image", "copy", "app:amd", f"dir:{tmp_path}/dir")
    layer = json.loads((tmp_path / "dir/manifest.json").read_text())["layers"][-1]
    path = tmp_path / "dir" / layer["digest"].removeprefix("sha256:")
    path.write_bytes(b"x" * layer["size"])
    cold = CommandLine(tmp_path / "root")
    targets = ["bad:1", f"docker://{server.name('bad/app:1')}", f"oci:{tmp_path}/layout:a", f"oci-archive:{tmp_path}/x.tar"]
    for target in targets:
        told = cold("image", "copy", f"dir:{tmp_path}/dir", target)
        assert told.status == 1 and "expected sha256:" in told.err, target
    assert not (tmp_path / "x.tar").exists() and not (tmp_path / "layout/index.json").exists()
    assert cold.ok("images", "-q").out == ""
    cold.ok("prune", "-f")
    image_verify.verify_store(cold.root)


BAD = {
    "foo://x": "no transport here",
    "dir:": "names no directory",
    "oci:/nowhere": "no OCI layout",
    "docker://host/UPPER": "lower case",
    "nothing:here": "no such image",
}


@pytest.mark.parametrize("source", BAD)
def test_a_place_that_cannot_be_meant_is_an_error(tmp_path: Path, source: str) -> None:
    told = CommandLine(tmp_path / "root")("image", "copy", source, f"oci:{tmp_path}/never")
    assert told.status in (1, 2) and BAD[source] in told.err and not (tmp_path / "never").exists()


# Lists


def test_a_list_is_an_index_that_skopeo_and_pull_choose_from(sandbox: CommandLine, pushed: str) -> None:
    index = raw(f"docker://{pushed}")
    found = [(each["platform"]["architecture"], each["platform"].get("variant"), each.get("annotations")) for each in index["manifests"]]
    assert found == [("amd64", None, None), ("arm64", "v8", {"who": "me"})]
    assert json.loads(sandbox.ok("manifest", "inspect", f"docker://{pushed}").out) == index
    for name, (architecture, _) in PLATFORMS.items():
        sandbox.ok("pull", "-q", "--platform", f"linux/{architecture}", pushed)
        assert sandbox.ok("run", "--rm", pushed).out == f"{name}\n"
    told = sandbox("pull", "--platform", "linux/s390x", pushed)
    assert told.status == 1 and "there is linux/amd64, linux/arm64/v8" in told.err


def test_a_list_of_what_only_a_registry_has(sandbox: CommandLine, pushed: str, server: RegistryServer) -> None:
    sandbox.ok("manifest", "create", "--all", server.name("team/again:1"), f"docker://{pushed}")
    sandbox.ok("manifest", "push", server.name("team/again:1"))
    assert raw(f"docker://{server.name('team/again:1')}")["manifests"] == raw(f"docker://{pushed}")["manifests"]


def test_annotate_remove_and_rm(sandbox: CommandLine) -> None:
    sandbox.ok("manifest", "create", "team/list", "app:amd")
    sandbox.ok("manifest", "add", "team/list", "app:arm", "--arch", "arm64")
    sandbox.ok("manifest", "annotate", "team/list", "app:amd", "--os", "plan9", "--os-version", "4")
    index = sandbox.json("manifest", "inspect", "team/list")
    assert [each["platform"] for each in index["manifests"]] == [
        {"architecture": "amd64", "os": "plan9", "os.version": "4"},
        {"architecture": "arm64", "os": "linux"},
    ]
    sandbox.ok("manifest", "remove", "team/list", index["manifests"][0]["digest"])
    assert len(sandbox.json("manifest", "inspect", "team/list")["manifests"]) == 1
    again = sandbox("manifest", "create", "team/list")
    assert again.status == 1 and "--amend" in again.err
    assert sandbox("manifest", "remove", "team/list", "app:amd").status == 1
    sandbox.ok("manifest", "rm", "team/list")
    assert sandbox("manifest", "rm", "team/list").status == 1


def test_an_image_of_a_list_is_kept(sandbox: CommandLine) -> None:
    sandbox.ok("build", "-q", "-t", "app:kept", "-", stdin=b"FROM busybox\nRUN echo kept > /said\n")
    sandbox.ok("manifest", "create", "team/list", "app:kept")
    refused = sandbox("rmi", "app:kept")
    assert refused.status == 1 and "team/list" in refused.err
    image_id = sandbox.json("inspect", "app:kept")[0]["Id"]
    sandbox.ok("build", "-q", "-t", "app:kept", "-", stdin=b"FROM busybox\nRUN echo other > /said\n")  # takes its name away
    sandbox.ok("prune", "-f")
    assert sandbox.json("inspect", image_id)[0]["Id"] == image_id
    sandbox.ok("manifest", "rm", "team/list")
    sandbox.ok("prune", "-f")
    assert sandbox("image", "inspect", image_id).status == 1


def test_an_empty_list_is_not_pushed(sandbox: CommandLine, server: RegistryServer) -> None:
    sandbox.ok("manifest", "create", server.name("team/empty"))
    told = sandbox("manifest", "push", server.name("team/empty"))
    assert told.status == 1 and "manifest add" in told.err
