"""What registries have, of every kind: docker's media types and the OCI's, however layers are compressed; when it is fetched, and that it
stays what it was."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any  # a manifest's JSON

import pytest

from sandbox import Engine
from sandbox.errors import InvalidImage
from sandbox.image import plain
from sandbox.image.compression import compressed
from sandbox.image.packing import Packing
from sandbox.image.registry.access import Terms
from sandbox.image.registry.wire import Patience
from sandbox.image.store import Store
from tests.support.bad_registry import BadRegistry, bad_registry, digest_of, gone, held, layer_of, verified_engine
from tests.support.command_line import CommandLine, command_line
from tests.support.host import requires

pytestmark = requires("root")
SIZE = 3 << 20
TARS = (layer_of("one", SIZE, 1), layer_of("two", SIZE, 2), layer_of("three", SIZE, 3))
NAMES = ("one", "two", "three")
KINDS = ("gzip", "zstd", "none")
OCI = {kind: f"application/vnd.oci.image.layer.v1.tar{suffix}" for kind, suffix in zip(KINDS, ("+gzip", "+zstd", ""), strict=True)}
DOCKER = {"gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip", "none": "application/vnd.docker.image.rootfs.diff.tar"}
QUICK = Terms(patience=Patience(read=10.0, tries=4, pause=0.01))


def packed(tar: bytes, kind: str) -> bytes:
    """As a registry has it."""
    return gzip.compress(tar, 1, mtime=0) if kind == "gzip" else b"".join(compressed(io.BytesIO(tar), kind))  # type: ignore[arg-type]


def put(registry: BadRegistry, name: str, layers: Sequence[tuple[bytes, str, bytes]], types: Mapping[str, str] = OCI, **more: str) -> None:
    """An image of tars, how each is compressed, and the bytes that are there."""

    def describe(manifest: dict[str, Any]) -> None:
        for row, (_, kind, _) in zip(manifest["layers"], layers, strict=True):
            row["mediaType"] = types[kind]
        manifest["mediaType"] = more.get("manifest", manifest["mediaType"])
        manifest["config"]["mediaType"] = more.get("config", manifest["config"]["mediaType"])

    diff_ids = [digest_of(tar) for tar, _, _ in layers]
    registry.add_image(name, *(data for _, _, data in layers), change=describe, rootfs={"type": "layers", "diff_ids": diff_ids})


@pytest.fixture
def registry() -> Iterator[BadRegistry]:
    with bad_registry() as made:
        yield made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with verified_engine(tmp_path / "engine") as made:
        yield made


def is_here(engine: Engine, name: str, tars: Sequence[bytes] = TARS) -> bool:
    tree = Store(engine.root).tree(engine.image(name).top)
    return all(tree.read(f"/{file}", limit=SIZE) == tar[512 : 512 + SIZE] for file, tar in zip(NAMES, tars, strict=False))


def test_layers_of_every_compression_are_taken_and_pushed_unchanged(engine: Engine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(tar, kind, packed(tar, kind)) for tar, kind in zip(TARS, KINDS, strict=True)])
    name, there = f"{registry.host}/team/app:1", f"{registry.host}/again/app:2"
    engine.pull(name, terms=QUICK)
    assert is_here(engine, name)
    engine.push(name, there, terms=QUICK)
    before, after = (json.loads(registry.manifests[place][1]) for place in ("team/app/1", "again/app/2"))
    assert after == before
    assert registry.manifests["again/app/2"] == registry.manifests["team/app/1"]
    engine.push(name, there, packing=Packing("gzip", force=True), terms=QUICK)
    assert [each["mediaType"] for each in json.loads(registry.manifests["again/app/2"][1])["layers"]] == [OCI["gzip"]] * 3


def test_dockers_media_types_are_taken_and_pushed_unchanged(engine: Engine, registry: BadRegistry) -> None:
    types = {"manifest": "application/vnd.docker.distribution.manifest.v2+json", "config": "application/vnd.docker.container.image.v1+json"}
    put(registry, "team/app:1", [(tar, kind, packed(tar, kind)) for tar, kind in zip(TARS, DOCKER, strict=False)], DOCKER, **types)
    rows = [{"mediaType": types["manifest"], "platform": {"architecture": "amd64", "os": "linux"}, **_described(registry, "team/app/1")}]
    listed = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json", "manifests": rows}
    registry.put_manifest("team/app:list", listed)
    engine.pull(f"{registry.host}/team/app:list", platform="linux/amd64", terms=QUICK)
    assert is_here(engine, f"{registry.host}/team/app:list", TARS[:2])
    engine.push(f"{registry.host}/team/app:list", f"{registry.host}/again/app:2", terms=QUICK)
    assert registry.manifests["again/app/2"] == registry.manifests["team/app/1"]


def _described(registry: BadRegistry, place: str) -> dict[str, Any]:
    raw = registry.manifests[place][1]
    return {"digest": digest_of(raw), "size": len(raw)}


def test_a_zstd_that_ends_in_the_middle_is_refused(engine: Engine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(TARS[0], "zstd", packed(TARS[0], "zstd")[: SIZE // 2])])
    with pytest.raises(InvalidImage, match="damaged compressed stream"):
        engine.pull(f"{registry.host}/team/app:1", terms=QUICK)
    assert engine.images() == []


@pytest.mark.parametrize("is_bomb", [True, False])
def test_a_zstd_bomb_ends_at_a_cap(engine: Engine, registry: BadRegistry, monkeypatch: pytest.MonkeyPatch, *, is_bomb: bool) -> None:
    monkeypatch.setattr(plain, "_BOMB_FLOOR", (4 << 20) if is_bomb else (8 << 20))
    monkeypatch.setattr(plain, "_BOMB_RATIO", 1)
    bomb = layer_of("zeros", 0)[:512] + bytes(6 << 20)
    put(registry, "team/bomb:1", [(bomb, "zstd", packed(bomb, "zstd"))])
    if is_bomb:
        with pytest.raises(InvalidImage, match="so few compressed bytes cannot mean"):
            engine.pull(f"{registry.host}/team/bomb:1", terms=QUICK)
    else:
        engine.pull(f"{registry.host}/team/bomb:1", terms=QUICK)
    assert len(engine.images()) == (0 if is_bomb else 1)


def test_layers_come_side_by_side_and_are_unpacked_while_they_come(engine: Engine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(tar, "none", tar) for tar in TARS[:2]])
    gate = threading.Event()
    for tar in TARS[:2]:
        registry.fault("GET", f"/blobs/{digest_of(tar)}", held(5 * SIZE // 6, gate))
    with ThreadPoolExecutor(1) as pool:
        pulled = pool.submit(engine.pull, f"{registry.host}/team/app:1", terms=QUICK)
        try:
            for tar in TARS[:2]:
                registry.wait_asked(1, "GET", f"/blobs/{digest_of(tar)}")
            for name in NAMES[:2]:
                assert _grows(engine.root, name), "nothing is unpacked before a layer is there as a whole"
            assert not pulled.done()
        finally:
            gate.set()
        pulled.result()
    assert is_here(engine, f"{registry.host}/team/app:1", TARS[:2])


def _grows(root: Path, name: str) -> bool:
    """Whether an unfinished layer gets half a MiB of this file (its writer tells nobody)."""
    for _ in range(1000):
        if any(path.stat().st_size >= 1 << 19 for path in (root / "drafts").glob(f"*/**/{name}")):
            return True
        threading.Event().wait(0.01)
    return False


def test_a_pull_that_is_under_way_is_not_pruned(engine: Engine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(tar, "none", tar) for tar in TARS[:2]])
    gate = threading.Event()
    registry.fault("GET", f"/blobs/{digest_of(TARS[1])}", held(SIZE // 2, gate))
    with ThreadPoolExecutor(2) as pool, Engine(engine.root) as other:
        pulled = pool.submit(engine.pull, f"{registry.host}/team/app:1", terms=QUICK)
        registry.wait_asked(1, "GET", f"/blobs/{digest_of(TARS[1])}")
        pruned = pool.submit(other.prune, all=True)  # waits for it, or passes it by
        gate.set()
        pulled.result()
        pruned.result()
        engine.pull(f"{registry.host}/team/app:1", terms=QUICK)  # an unused image of before may go, with all that is its own
    assert is_here(engine, f"{registry.host}/team/app:1", TARS[:2])


def test_a_token_server_that_is_cut_off_is_asked_again(engine: Engine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(TARS[0], "none", TARS[0])])
    with bad_registry() as tokens:
        tokens.pages["/token"] = b'{"token": "let-me-in", "expires_in": 300}'
        tokens.fault("GET", "/token", gone, gone)
        registry.token, registry.realm = "let-me-in", f"{tokens.url}/token"
        engine.pull(f"{registry.host}/team/app:1", terms=QUICK)
        assert tokens.is_spent
    assert is_here(engine, f"{registry.host}/team/app:1", TARS[:1])


# When


@pytest.fixture
def sandbox(tmp_path: Path, busybox_tar: Path) -> Iterator[CommandLine]:
    with command_line(tmp_path / "root", (busybox_tar, "busybox")) as made:
        yield made


@requires("userns", "overlay", "tool:busybox")
@pytest.mark.parametrize("verb", ["run", "build"])
def test_when_an_image_is_fetched_is_what_pull_says(sandbox: CommandLine, registry: BadRegistry, verb: str) -> None:
    name = f"{registry.host}/team/box:1"

    def said(policy: str) -> tuple[int, str]:
        if verb == "run":
            done = sandbox("run", "--rm", f"--pull={policy}", name, "cat", "/which")
            return done.status, done.out
        done = sandbox("build", f"--pull={policy}", "--no-cache", "-t", "made", "-", stdin=f"FROM {name}\n".encode())
        return done.status, sandbox.ok("run", "--rm", "made", "cat", "/which").out if done.status == 0 else ""

    def publish(text: str) -> None:
        sandbox.ok("build", "-t", name, "-", stdin=f"FROM busybox\nRUN echo {text} > /which\n".encode())
        sandbox.ok("push", name)
        sandbox.ok("rmi", name)

    publish("old")
    assert said("never")[0] != 0
    assert said("missing") == (0, "old\n")
    sandbox.ok("tag", name, "kept")
    publish("new")
    sandbox.ok("tag", "kept", name)
    asked = len(registry.asked)
    assert (said("never"), said("missing")) == ((0, "old\n"), (0, "old\n"))
    assert len(registry.asked) == asked
    assert said("always") == (0, "new\n")


@requires("userns", "overlay", "tool:busybox")
def test_a_build_brings_bases_that_name_their_registry(sandbox: CommandLine, registry: BadRegistry) -> None:
    put(registry, "team/app:1", [(TARS[0], "none", TARS[0])])
    put(registry, "team/other:1", [(TARS[1], "none", TARS[1])])
    lines = f"FROM busybox\nCOPY --from={registry.host}/team/app:1 /one /\nCOPY --from=other /two /\n"
    sandbox.ok("build", "-t", "made", "--build-context", f"other=docker-image://{registry.host}/team/other:1", "-", stdin=lines.encode())
    assert sandbox.ok("run", "--rm", "made", "stat", "-c", "%s", "/one", "/two").lines == [str(SIZE), str(SIZE)]
    done = sandbox("build", "-", stdin=f"FROM busybox\nRUN true\nFROM {registry.host}/team/none:1\n".encode())
    assert (done.status, "line 3" in done.err, "not in" in done.err) == (1, True, True), done.err
