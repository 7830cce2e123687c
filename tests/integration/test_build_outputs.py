"""`build --output` in every form, as its user meets it: what is written is read by other programs, or by the oracle."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from sandbox import Engine
from tests.support.host import requires
from tests.support.image_tars import unpacked
from tests.support.image_verify import verify_layout, verify_store

pytestmark = [requires("image-schemas"), pytest.mark.anybody]

DOCKERFILE = """FROM scratch
COPY --chown=7:8 f /d/f
COPY --chmod=4755 f /d/tool
COPY link /l
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    directory = tmp_path / "context"
    (directory / "link").mkdir(parents=True)
    (directory / "f").write_text("content")
    (directory / "link/to").symlink_to("/d/f")
    (directory / "Dockerfile").write_text(DOCKERFILE)
    return directory


class Builder:
    """`sandbox build` of the context, with these flags."""

    def __init__(self, command: list[str], root: Path, context: Path) -> None:
        self.root, self._argv, self._context = root, [*command, "--root", str(root), "build"], context

    def __call__(self, *flags: str, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        done = subprocess.run([*self._argv, *flags, str(self._context)], capture_output=True, env=environment, check=False)
        assert done.returncode == code, done.stderr.decode()
        return done


@pytest.fixture
def build(sandbox_command: list[str], tmp_path: Path, context: Path) -> Builder:
    return Builder(sandbox_command, tmp_path / "engine", context)


@pytest.mark.parametrize(("compression", "kind"), [("gzip", "tar+gzip"), ("zstd", "tar+zstd"), ("uncompressed", "tar")])
def test_oci_archive_in_each_compression(build: Builder, tmp_path: Path, compression: str, kind: str) -> None:
    target = tmp_path / "x.tar"
    build("-t", "app:1", "-o", f"type=oci,dest={target},compression={compression}")
    layout = unpacked(target, tmp_path / "layout")
    verify_layout(layout)
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    assert {layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]} == {kind}
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "docker.io/library/app:1"
    verify_store(build.root)


def test_the_same_input_gives_the_same_archive(build: Builder, sandbox_command: list[str], context: Path, tmp_path: Path) -> None:
    build("-o", f"type=oci,dest={tmp_path}/1.tar")
    build("--no-cache", "-o", f"type=oci,dest={tmp_path}/2.tar")
    Builder(sandbox_command, tmp_path / "other", context)("-o", f"type=oci,dest={tmp_path}/3.tar")
    assert len({(tmp_path / f"{number}.tar").read_bytes() for number in (1, 2, 3)}) == 1


def test_a_layer_is_compressed_once(build: Builder, tmp_path: Path) -> None:
    build("-t", "app", "-o", f"type=oci,dest={tmp_path}/1.tar")
    blobs = {path: path.stat().st_ino for path in (build.root / "blobs/sha256").iterdir()}
    build("-t", "app", "-o", f"type=oci,dest={tmp_path}/2.tar", "-o", f"type=docker,dest={tmp_path}/3.tar")
    assert {path: path.stat().st_ino for path in (build.root / "blobs/sha256").iterdir()} == blobs
    with Engine(build.root) as engine:
        engine.save(["app"], tmp_path / "4.tar", format="oci", compression="gzip")
        assert {path: path.stat().st_ino for path in (build.root / "blobs/sha256").iterdir()} == blobs
        engine.prune()
        assert {path: path.stat().st_ino for path in (build.root / "blobs/sha256").iterdir()} == blobs
        engine.remove_image("app")
        engine.prune()
    assert list((build.root / "blobs/sha256").iterdir()) == []


def test_docker_archive_loads_again(build: Builder, tmp_path: Path) -> None:
    target = tmp_path / "x.tar"
    image_id = build("-q", "-t", "app:1", "-o", f"type=docker,dest={target}").stdout.decode().strip()
    with Engine(tmp_path / "second") as engine:
        ((name, image),) = engine.load(target)
        assert (name, image.id) == ("app:1", image_id)
    verify_store(tmp_path / "second")


def test_docker_without_dest_is_the_engine_itself(build: Builder) -> None:
    build("-o", "type=docker,name=other:2")
    with Engine(build.root) as engine:
        assert engine.image("other:2")


def test_layout_in_a_directory_keeps_what_is_there(build: Builder, tmp_path: Path) -> None:
    target = tmp_path / "layout"
    build("-t", "app:1", "-o", f"type=oci,tar=false,dest={target}")
    build("-t", "app:2", "--label", "a=b", "-o", f"type=oci,tar=false,dest={target}")
    build("-t", "app:2", "--label", "a=b", "-o", f"type=oci,tar=false,dest={target}")
    verify_layout(target)
    index = json.loads((target / "index.json").read_text())
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]] == ["1", "2"]


def test_tar_of_the_file_system_to_stdout(build: Builder, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(build("-o", "-").stdout)
    with tarfile.open(tmp_path / "x.tar") as tar:
        found = {member.name: member for member in tar}
    assert sorted(found) == ["d", "d/f", "d/tool", "l", "l/to"]
    assert (found["d/f"].uid, found["d/f"].gid) == (7, 8)
    assert found["d/tool"].mode == 0o4755
    assert found["l/to"].linkname == "/d/f"


def test_local_files_belong_to_the_builder(build: Builder, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    canary = tmp_path / "canary"
    canary.mkdir()
    (target / "d").symlink_to(canary)
    build("-o", str(target))
    assert (target / "d/f").read_text() == "content"
    assert (target / "d/f").stat().st_uid == os.geteuid()
    assert stat.S_IMODE((target / "d/tool").stat().st_mode) == 0o4755
    assert os.readlink(target / "l/to") == "/d/f"
    assert list(canary.iterdir()) == []


def test_metadata_and_iid_files(build: Builder, tmp_path: Path) -> None:
    done = build(
        "-q", "-t", "app", "--metadata-file", f"{tmp_path}/m.json", "--iidfile", f"{tmp_path}/iid", "-o", f"type=oci,dest={tmp_path}/x.tar"
    )
    metadata = json.loads((tmp_path / "m.json").read_text())
    image_id = (tmp_path / "iid").read_text()
    assert metadata["containerimage.config.digest"] == image_id == done.stdout.decode().strip()
    assert metadata["image.name"] == "docker.io/library/app:latest"
    index = json.loads((unpacked(tmp_path / "x.tar", tmp_path / "layout") / "index.json").read_text())
    assert index["manifests"][0]["digest"] == metadata["containerimage.digest"] == metadata["containerimage.descriptor"]["digest"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=tgz", "type 'tgz' is not known"),
        ("dest=x", "no type"),
        ("type=oci,x", "'x' is not of the form key=value"),
        ("type=oci,attestations=1", "attestations is not supported for type=oci"),
        ("type=oci,dest=x,compression=estargz", "compression 'estargz' is not supported"),
        ("type=local", "no directory to write to"),
        ("type=image,name=x,push=true", "push is not part of a build"),
        ("type=oci,dest=/nowhere/x.tar", "no such file or directory"),
    ],
)
def test_output_that_cannot_be_is_an_error(build: Builder, text: str, message: str) -> None:
    assert message in build("-o", text, code=1).stderr.decode()


def test_an_output_that_cannot_be_written_is_refused_before_the_build(build: Builder, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    build("-o", f"type=oci,dest={tmp_path}/taken", code=1)
    assert "two of them go to stdout" in build("-o", "-", "-o", "type=oci", code=1).stderr.decode()
    assert list((tmp_path / "taken").iterdir()) == []
    assert not (build.root / "store.db").exists()


@requires("root")
def test_a_full_disk_leaves_no_half_file(build: Builder, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "small", str(tmp_path / "small")], check=True)
    try:
        assert "no space left" in build("-o", f"type=oci,dest={tmp_path}/small/x.tar", code=1).stderr.decode()
        assert list((tmp_path / "small").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "small")], check=True)
