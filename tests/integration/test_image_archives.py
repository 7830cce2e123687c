"""Archives that leave are read by skopeo and umoci; archives that skopeo writes are read here; broken ones leave nothing."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from sandbox import Engine
from sandbox.errors import ImageError, SandboxError
from sandbox.image.apply import apply_tar
from sandbox.image.layers import ChangesetReader, FlatTar
from sandbox.image.store import Store
from tests.support.file_trees import differences, facts_of
from tests.support.host import requires
from tests.support.image_tars import unpacked
from tests.support.image_verify import broken, strays, verify_layout, verify_store

pytestmark = requires("root", "tool:skopeo", "tool:umoci", "image-schemas")

DOCKERFILE = """FROM busybox
COPY --chown=7:8 --chmod=640 a /d/a
COPY tree /tree
COPY --chmod=4755 a /tool
ENV A=1
LABEL x=y
CMD ["sh"]
"""


@pytest.fixture
def image(engine: Engine, busybox_image: str, tmp_path: Path) -> str:
    """Names of all kinds: a hard link, links, an attribute, a fifo, a long name, a file replaced and one removed above."""
    context = tmp_path / "context"
    (context / "tree/empty").mkdir(parents=True)
    (context / "a").write_text("a")
    (context / "tree/twin-1").write_text("twin")
    os.link(context / "tree/twin-1", context / "tree/twin-2")
    (context / "tree/link").symlink_to("nowhere")
    (context / "tree" / ("n" * 150)).write_text("long")
    (context / "tree/noted").write_text("noted")
    os.setxattr(context / "tree/noted", "user.note", b"\x00\x01")
    engine.build(context, dockerfile=DOCKERFILE, tags=["app:1"])
    return "app:1"


def skopeo(*argv: str) -> str:
    done = subprocess.run(["skopeo", "--insecure-policy", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORMATS = [("oci", None), ("oci", "gzip"), ("oci", "zstd"), ("docker", None), ("docker", "gzip")]


@pytest.mark.parametrize(("format", "compression"), FORMATS)
def test_what_save_writes_skopeo_reads_and_copies(
    engine: Engine, image: str, tmp_path: Path, format: Literal["oci", "docker"], compression: Literal["gzip", "zstd"] | None
) -> None:
    archive = tmp_path / "x.tar"
    engine.save([image], archive, format=format, compression=compression)
    name = f"{format}-archive:{archive}" + (":docker.io/library/app:1" if format == "docker" else "")
    inspected = json.loads(skopeo("inspect", name))
    assert inspected["Labels"] == {"x": "y"}
    assert "A=1" in inspected["Env"]
    skopeo("copy", name, f"dir:{tmp_path}/dir")
    skopeo("copy", f"dir:{tmp_path}/dir", f"oci-archive:{tmp_path}/back.tar:docker.io/library/back:1")
    verify_layout(unpacked(archive, tmp_path / "layout") if format == "oci" else _without_manifest(archive, tmp_path / "layout"))
    with Engine(tmp_path / "second") as second:
        ((loaded, again),) = second.load(tmp_path / "back.tar")
        assert loaded == "back:1"
        assert again.diff_ids == engine.image(image).diff_ids
        assert again.config.value.config == engine.image(image).config.value.config
    verify_store(tmp_path / "second")
    verify_store(engine.root)


def _without_manifest(archive: Path, into: Path) -> Path:
    unpacked(archive, into)
    (into / "manifest.json").unlink()
    return into


def test_the_same_image_gives_the_same_archive(engine: Engine, image: str, tmp_path: Path) -> None:
    for number in range(2):
        engine.save([image], tmp_path / f"{number}.tar", format="oci", compression="gzip")
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


@pytest.fixture
def bundle(engine: Engine, image: str, tmp_path: Path) -> Path:
    """The root file system as umoci unpacks it."""
    engine.save([image], tmp_path / "x.tar", format="oci", compression="gzip")
    layout = unpacked(tmp_path / "x.tar", tmp_path / "layout")
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:1", str(tmp_path / "bundle")], check=True, capture_output=True)
    return tmp_path / "bundle/rootfs"


def test_umoci_unpacks_the_tree_that_containers_see(engine: Engine, image: str, bundle: Path, tmp_path: Path) -> None:
    store = Store(engine.root)
    ours = tmp_path / "ours"
    ours.mkdir()
    apply_tar(io.BufferedReader(ChangesetReader(FlatTar(store.tree(engine.image(image).top)))), ours)
    theirs = facts_of(bundle)
    assert len(theirs) > 20
    assert differences(facts_of(ours), theirs) == []
    # busybox' own view, from inside
    script = "find /tree /d /tool /bin /etc/passwd -exec stat -c '%n %f %u %g %h' {} +"
    inside = engine.run(image, ["sh", "-c", script], network="none")
    assert inside.exit_code == 0
    lines = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in inside.stdout.decode().splitlines()}
    assert len(lines) > 20
    for name, line in lines.items():
        status = os.lstat(f"{bundle}{name}")
        links = line.split()[3] if os.path.isdir(f"{bundle}{name}") else str(status.st_nlink)  # overlay counts directories' otherwise
        assert line == f"{status.st_mode:x} {status.st_uid} {status.st_gid} {links}", name


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "d/a").write_text("b"),
    "mode": lambda root: (root / "d/a").chmod(0o600),
    "owner": lambda root: os.chown(root / "d/a", 1, 1),
    "time": lambda root: os.utime(root / "d/a", (5, 5)),
    "attribute": lambda root: os.setxattr(root / "tool", "user.x", b"y"),
    "link": lambda root: ((root / "tree/link").unlink(), (root / "tree/link").symlink_to("elsewhere")),
    "hard link": lambda root: ((root / "tree/twin-2").unlink(), shutil.copy2(root / "tree/twin-1", root / "tree/twin-2")),
    "name": lambda root: (root / "tree/empty").rename(root / "tree/full"),
    "kind": lambda root: ((root / "tree/empty").rmdir(), os.mkfifo(root / "tree/empty")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_comparison_of_trees_notices(bundle: Path, name: str) -> None:
    before = facts_of(bundle)
    CHANGES[name](bundle)
    assert differences(before, facts_of(bundle)) != []


# What others write


@pytest.mark.parametrize("flags", [(), ("--dest-compress-format", "gzip"), ("--dest-compress-format", "zstd")])
def test_oci_archive_of_skopeo_is_loaded(engine: Engine, image: str, tmp_path: Path, flags: tuple[str, ...]) -> None:
    engine.save([image], tmp_path / "x.tar", format="oci")
    compress = ["--dest-compress", *flags] if flags else []
    skopeo("copy", *compress, f"oci-archive:{tmp_path}/x.tar", f"oci:{tmp_path}/layout:localhost/other:2")
    subprocess.run(["tar", "-C", tmp_path / "layout", "-cf", tmp_path / "y.tar", "."], check=True)
    with Engine(tmp_path / "second") as second:
        ((name, again),) = second.load(tmp_path / "y.tar")
        assert name == "localhost/other:2"
        assert again.diff_ids == engine.image(image).diff_ids
    verify_store(tmp_path / "second")


@pytest.mark.parametrize("compress", [None, "gzip", "zstd"])
def test_docker_archive_of_skopeo_with_several_tags_is_loaded(engine: Engine, image: str, tmp_path: Path, compress: str | None) -> None:
    engine.save([image], tmp_path / "x.tar", format="oci")
    tags = [f"--additional-tag=app:{tag}" for tag in ("two", "three")]
    skopeo("copy", *tags, f"oci-archive:{tmp_path}/x.tar", f"docker-archive:{tmp_path}/y.tar:app:one")
    archive = tmp_path / "y.tar"
    if compress:
        suffix = {"gzip": "gz", "zstd": "zst"}[compress]
        with archive.open("rb") as plain, (tmp_path / f"y.tar.{suffix}").open("wb") as out:
            subprocess.run([compress, "-c"], stdin=plain, stdout=out, check=True)
        archive = tmp_path / f"y.tar.{suffix}"
    with Engine(tmp_path / "second") as second:
        found = second.load(archive)
        assert {name for name, _ in found} == {"app:one", "app:two", "app:three"}
        assert len({again.id for _, again in found}) == 1
    verify_store(tmp_path / "second")


def test_an_image_without_a_name_is_loaded_by_its_id(engine: Engine, image: str, tmp_path: Path) -> None:
    engine.save([engine.image(image).id], tmp_path / "x.tar", format="oci")
    with Engine(tmp_path / "second") as second:
        ((name, again),) = second.load(tmp_path / "x.tar")
        assert (name, again.id) == (None, engine.image(image).id)
        assert second.image(again.id.short).id == again.id


@pytest.mark.parametrize("format", ["oci", "docker"])
def test_several_images_in_one_archive(engine: Engine, image: str, tmp_path: Path, format: Literal["oci", "docker"]) -> None:
    engine.tag(image, "app:again")
    engine.save([image, "app:again", "busybox"], tmp_path / "x.tar", format=format)
    with Engine(tmp_path / "second") as second:
        assert {name for name, _ in second.load(tmp_path / "x.tar")} == {"app:1", "app:again", "busybox:latest"}
        assert len(second.images()) == 3
    verify_store(tmp_path / "second")


def test_received_layers_leave_in_another_compression(engine: Engine, image: str, tmp_path: Path) -> None:
    engine.save([image], tmp_path / "gzip.tar", format="oci", compression="gzip")
    with Engine(tmp_path / "second") as second:
        second.load(tmp_path / "gzip.tar")
        for kind in ("none", "zstd", None):
            second.save([image], tmp_path / f"{kind}.tar", format="oci", compression=kind)  # type: ignore[arg-type]
            verify_layout(unpacked(tmp_path / f"{kind}.tar", tmp_path / f"layout-{kind}"))
        assert (tmp_path / "None.tar").read_bytes() == (tmp_path / "gzip.tar").read_bytes()
    verify_store(tmp_path / "second")


# Broken and hostile archives


def rewritten(archive: Path, change: Callable[[dict[str, bytes]], object], target: Path) -> Path:
    """The archive with its files changed."""
    with tarfile.open(archive) as tar:
        files = {member.name: (tar.extractfile(member) or io.BytesIO()).read() for member in tar}
    change(files)
    with tarfile.open(target, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target


def blob_of(files: dict[str, bytes], *path: Any) -> str:
    """The blob's name that this path of keys leads to, from the index' first manifest."""
    value: Any = json.loads(files["index.json"])["manifests"][0]
    for key in ("digest", *path):
        if key == "digest" and not isinstance(value, str):
            value = value["digest"]
        if isinstance(value, str):
            name = f"blobs/sha256/{value[7:]}"
            if key == "digest":
                continue
            value = json.loads(files[name])
        value = value[key]
    return f"blobs/sha256/{(value if isinstance(value, str) else value['digest'])[7:]}"


def put(files: dict[str, bytes], data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    files[f"blobs/sha256/{digest}"] = data
    return {"digest": f"sha256:{digest}", "size": len(data)}


def with_layer(data: bytes, kind: str) -> Callable[[dict[str, bytes]], object]:
    """A change: the first layer is this one, and every digest on the way to it is right."""

    def change(files: dict[str, bytes]) -> None:
        index = json.loads(files["index.json"])
        manifest = json.loads(files[blob_of(files)])
        config = json.loads(files[blob_of(files, "config")])
        manifest["layers"][0] = {"mediaType": f"application/vnd.oci.image.layer.v1.{kind}", **put(files, data)}
        plain = gzip.decompress(data) if kind == "tar+gzip" else data
        config["rootfs"]["diff_ids"][0] = f"sha256:{hashlib.sha256(plain).hexdigest()}"
        manifest["config"].update(put(files, json.dumps(config).encode()))
        index["manifests"][0].update(put(files, json.dumps(manifest).encode()))
        files["index.json"] = json.dumps(index).encode()

    return change


def tar_with(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info)
    return out.getvalue()


def huge_extension() -> bytes:
    """A PAX header that says it has 8 GiB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 << 30
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


HOSTILE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a layer is another": (lambda f: f.update({blob_of(f, "layers", 0): b"x" * len(f[blob_of(f, "layers", 0)])}), "expected sha256"),
    "a layer is shorter": (lambda f: f.update({blob_of(f, "layers", 0): b"x"}), "bytes, got 1"),
    "a layer is missing": (lambda f: f.pop(blob_of(f, "layers", 0)), "is missing"),
    "the config is another": (lambda f: f.update({blob_of(f, "config"): b"{}"}), "expected"),
    "the manifest is another": (lambda f: f.update({blob_of(f): b"{}"}), "expected"),
    "the manifest is huge": (lambda f: f.update({blob_of(f): bytes(17 << 20)}), "too large for a document"),
    "the index is no JSON": (lambda f: f.update({"index.json": b"{"}), "index:"),
    "the index is of another form": (lambda f: f.update({"index.json": b'{"manifests": 7}'}), "index:"),
    "neither": (lambda f: (f.pop("index.json"), f.pop("manifest.json", None)), "neither index.json nor manifest.json"),
    "a layer leads out": (with_layer(tar_with("../canary"), "tar"), "leads outside"),
    "a hard link leads out": (with_layer(tar_with("x", tarfile.LNKTYPE, "../canary"), "tar"), "leads outside"),
    "a layer that is no tar": (with_layer(b"no tar" * 1000, "tar"), "not a whole tar"),
    "a layer with a huge header": (with_layer(huge_extension(), "tar"), "extension header of"),
    "a layer cut in its gzip": (with_layer(gzip.compress(tar_with("x"))[:-12], "tar"), "damaged compressed stream"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_leaves_the_store_as_it_was(engine: Engine, image: str, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    engine.save([image], tmp_path / "x.tar", format="oci")
    archive = rewritten(tmp_path / "x.tar", change, tmp_path / "hostile.tar")
    _refused(tmp_path, archive, message)


def _refused(tmp_path: Path, archive: Path, message: str) -> None:
    (tmp_path / "canary").write_text("alive")
    with Engine(tmp_path / "second") as second:
        with pytest.raises(ImageError, match=message):
            second.load(archive)
        assert second.images() == []
        second.prune()
    verify_store(tmp_path / "second")
    assert (tmp_path / "canary").read_text() == "alive"
    assert list((tmp_path / "second/blobs/sha256").iterdir()) == []


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("compress", [False, True])
def test_a_cut_archive_leaves_the_store_as_it_was(engine: Engine, image: str, tmp_path: Path, part: float, *, compress: bool) -> None:
    engine.save([image], tmp_path / "x.tar", format="docker")
    whole = (tmp_path / "x.tar").read_bytes()
    data = gzip.compress(whole, 1) if compress else whole
    (tmp_path / "cut.tar").write_bytes(data[: int(len(data) * part)])
    _refused(tmp_path, tmp_path / "cut.tar", "archive|damaged")


def test_an_archive_of_a_sparse_terabyte_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as out:
        out.truncate(1 << 40)
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "-cf", tmp_path / "bomb.tar", "hole"], check=True)
    assert (tmp_path / "bomb.tar").stat().st_size < 1 << 20
    _refused(tmp_path, tmp_path / "bomb.tar", "is a sparse file")


def test_a_sparse_layer_keeps_its_holes(engine: Engine, tmp_path: Path) -> None:
    with (tmp_path / "hole").open("wb") as out:
        out.truncate(64 << 20)
        out.write(b"begin")
    subprocess.run(["tar", "-C", tmp_path, "--sparse", "--owner=0", "--group=0", "-cf", tmp_path / "root.tar", "hole"], check=True)
    image = engine.import_image(tmp_path / "root.tar", "holes")
    found = Store(engine.root).tree(image.top).stat("/hole")
    assert found.stat.st_size == 64 << 20
    assert found.stat.st_blocks * 512 <= 2 << 20  # holes are kept by the mebibyte


def test_memory_of_a_load_does_not_grow_with_its_layers(tmp_path: Path) -> None:
    """A layer of 150 MiB, in a process that may have 120 MiB of data."""
    (tmp_path / "big").write_bytes(os.urandom(1 << 20) * 150)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "root.tar", "big"], check=True)
    with Engine(tmp_path / "engine") as engine:
        engine.import_image(tmp_path / "root.tar", "big")
        engine.save(["big"], tmp_path / "x.tar", format="oci")
    program = (
        "import resource, sys, sandbox; from pathlib import Path; resource.setrlimit(resource.RLIMIT_DATA, (120 << 20, 120 << 20));"
        "sandbox.Engine(Path(sys.argv[1])).load(sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "second", tmp_path / "x.tar"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.parametrize("part", [0.1, 0.6, 0.99])
def test_a_load_killed_while_it_reads_leaves_only_what_prune_takes(
    engine: Engine, image: str, sandbox_command: list[str], tmp_path: Path, part: float
) -> None:
    engine.save([image], tmp_path / "x.tar", format="oci")
    data = (tmp_path / "x.tar").read_bytes()
    argv = [*sandbox_command, "--root", str(tmp_path / "second"), "load"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as loading:
        assert loading.stdin is not None
        loading.stdin.write(data[: int(len(data) * part)])  # more than a pipe holds: it has read some of it
        loading.stdin.flush()
        loading.kill()
        loading.wait()
        loading.stdin.close()
    assert broken(tmp_path / "second") == []
    assert any(".load-" in fault for fault in strays(tmp_path / "second")), "it was not killed in the middle"
    with Engine(tmp_path / "second") as second:
        second.prune(all=True)
        verify_store(second.root)
        assert second.load(tmp_path / "x.tar")[0][0] == "app:1"
    verify_store(tmp_path / "second")


def test_import_of_a_cut_tar_leaves_the_store_as_it_was(engine: Engine, busybox_tar: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tar").write_bytes(busybox_tar.read_bytes()[:100_000])
    with pytest.raises(SandboxError, match="not a whole tar"):
        engine.import_image(tmp_path / "cut.tar", "cut")
    assert engine.images() == []
    verify_store(engine.root)
