"""Images to and from Debian's docker-registry, by the command line."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import Engine
from tests.support import image_verify, registry
from tests.support.command_line import CommandLine, command_line
from tests.support.registry import RegistryServer, registry_server

pytestmark = pytest.mark.skipif(registry.missing() is not None, reason=str(registry.missing()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry_server(tmp_path / "registry") as running:
        yield running


def _built(sandbox: CommandLine, name: str, text: str = "hello") -> str:
    dockerfile = f'FROM busybox\nRUN echo {text} > /said\nCMD ["cat", "/said"]\n'
    return sandbox.ok("build", "-q", "-t", name, "-", stdin=dockerfile.encode()).lines[-1]


def test_an_image_built_pushed_removed_and_pulled_runs_as_it_did(sandbox: CommandLine, server: RegistryServer) -> None:
    name = server.name("team/app:1")
    image_id = _built(sandbox, name)
    pushed = sandbox.ok("push", name).out
    sandbox.ok("rmi", name, "busybox")
    sandbox.ok("prune", "-f")
    assert sandbox.ok("images", "-q").lines == []
    pulled = sandbox.ok("pull", name).out
    assert pushed.split()[2] in pulled and "Downloaded newer image" in pulled
    assert sandbox.ok("images", "-q", "--no-trunc").lines == [image_id]
    assert sandbox.ok("run", "--rm", name).out == "hello\n"
    image_verify.verify_store(sandbox.root)


def test_what_was_pulled_before_is_not_fetched_again(sandbox: CommandLine, server: RegistryServer) -> None:
    name = server.name("team/app:1")
    _built(sandbox, name)
    sandbox.ok("push", name)
    sandbox.ok("rmi", name, "busybox")
    sandbox.ok("prune", "-f")
    sandbox.ok("pull", name)
    before = len(server.requests())
    assert "Image is up to date" in sandbox.ok("pull", name).out
    layers = sandbox.json("inspect", name)[0]["RootFS"]["Layers"]
    again = [line for line in server.requests()[before:] if "/blobs/" in line]
    assert len(layers) == 2 and len(again) <= 1, again  # the config is a document


def test_a_digest_names_what_was_pushed(sandbox: CommandLine, server: RegistryServer) -> None:
    name = server.name("team/app:1")
    image_id = _built(sandbox, name)
    digest = sandbox.ok("push", name).out.split()[2]
    assert sandbox.json("inspect", name)[0]["RepoDigests"] == [f"{server.host}/team/app@{digest}"]
    sandbox.ok("rmi", name)
    by_digest = f"{server.host}/team/app@{digest}"
    sandbox.ok("pull", by_digest)
    assert sandbox.json("inspect", by_digest)[0]["Id"] == image_id


def test_every_tag_of_a_repository_is_pulled_at_once(sandbox: CommandLine, server: RegistryServer) -> None:
    for tag in ("1", "2", "latest"):
        sandbox.ok("push", "busybox", server.name(f"team/app:{tag}"))
    told = sandbox.ok("pull", "-a", server.name("team/app")).lines
    assert {line for line in told if line.startswith(server.host)} == {server.name(f"team/app:{tag}") for tag in ("1", "2", "latest")}
    refused = sandbox("pull", "-a", server.name("team/app:1"))
    assert refused.status == 1 and "leave out the tag" in refused.err
    none = sandbox("pull", "-a", server.name("team/none"))
    assert none.status == 1 and "not in" in none.err


def test_what_a_container_uses_stays_whatever_is_pruned(sandbox: CommandLine, server: RegistryServer) -> None:
    name = server.name("team/app:1")
    _built(sandbox, name)
    sandbox.ok("push", name)
    sandbox.ok("rmi", name, "busybox")
    sandbox.ok("prune", "-f")
    sandbox.ok("pull", name)
    sandbox.ok("run", "-d", "--name", "box", name, "sleep", "300")
    assert "container box is made of it" in sandbox("rmi", "-f", name).err
    for words in (("image", "prune", "-af"), ("builder", "prune", "-af"), ("prune", "-af")):
        sandbox.ok(*words)
    assert sandbox.ok("exec", "box", "cat", "/said").out == "hello\n"
    sandbox.ok("stop", "-t", "0", "box")
    sandbox.ok("image", "prune", "-af")
    sandbox.ok("start", "box")
    assert sandbox.ok("exec", "box", "cat", "/said").out == "hello\n"


def test_what_a_build_at_work_uses_stays_whatever_is_pruned(sandbox: CommandLine) -> None:
    with Engine(sandbox.root) as engine, Engine(sandbox.root) as other, ThreadPoolExecutor(1) as pool:
        pruned: list[Future[object]] = []

        def prune(_: object) -> None:
            if not pruned:
                pruned.append(pool.submit(other.prune, all=True))

        made = engine.build(None, dockerfile="FROM busybox\nRUN echo 1 > /a\nRUN echo 2 > /b\n", on_event=prune)
        pruned[0].result()
    assert len(made.diff_ids) == 3
    assert sandbox.ok("images", "-q").lines == []  # afterwards nobody used them
    image_verify.verify_store(sandbox.root)


def test_a_second_repository_gets_its_layers_by_mount(sandbox: CommandLine, server: RegistryServer) -> None:
    first, second = server.name("one/app:1"), server.name("two/app:1")
    _built(sandbox, first)
    sandbox.ok("push", first)
    sandbox.ok("tag", first, second)
    before = len(server.requests())
    sandbox.ok("push", second)
    mounted = [line for line in server.requests()[before:] if "mount=" in line and line.endswith("201")]
    assert len(mounted) >= 2, server.requests()[before:]


def test_skopeo_reads_what_was_pushed_and_its_copy_is_pulled(sandbox: CommandLine, server: RegistryServer) -> None:
    name = server.name("team/app:1")
    _built(sandbox, name)
    sandbox.ok("push", "--compression", "zstd", name)
    copy = ["skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    there = server.name("copied/app:2")
    subprocess.run([*copy, f"docker://{name}", f"docker://{there}"], check=True, timeout=60)
    shown = subprocess.run(["skopeo", "inspect", "--tls-verify=false", f"docker://{there}"], check=True, capture_output=True, timeout=60)
    digest = json.loads(shown.stdout)["Digest"]
    assert f"Digest: {digest}" in sandbox.ok("pull", there).lines


def test_a_name_no_registry_has_is_an_error_and_changes_nothing(sandbox: CommandLine, server: RegistryServer) -> None:
    before = sandbox.ok("images", "-q").lines
    done = sandbox("pull", server.name("team/none:1"))
    assert done.status == 1 and "not in" in done.err
    assert sandbox.ok("images", "-q").lines == before
    image_verify.verify_store(sandbox.root)


def test_a_build_cache_in_a_registry_serves_an_engine_that_knows_nothing(
    sandbox: CommandLine, server: RegistryServer, tmp_path: Path, busybox_tar: Path
) -> None:
    text = b"FROM busybox AS tools\nRUN echo tools > /t\nFROM busybox\nCOPY --from=tools /t /t\nRUN echo app > /a\n"
    name, common = server.name("team/cache:main"), ["--progress", "plain"]
    first = sandbox.ok("build", *common, "--cache-from", name, "--cache-to", f"type=registry,ref={name},mode=max", "-", stdin=text)
    assert "not in" in first.out + first.err, "that there is no cache yet is said"
    with command_line(tmp_path / "cold", (busybox_tar, "busybox")) as cold:
        told = cold.ok("build", *common, "--cache-from", f"type=registry,ref={name}", "-t", "app", "-", stdin=text)
        assert (told.out + told.err).count("CACHED") == 5
        assert cold.ok("run", "--rm", "app", "cat", "/t", "/a").out == "tools\napp\n"
        image_verify.verify_store(cold.root)


def test_a_layer_of_a_cache_that_was_tampered_with_is_refused(
    sandbox: CommandLine, server: RegistryServer, tmp_path: Path, busybox_tar: Path
) -> None:
    text, name = b"FROM busybox\nRUN echo app > /a\n", server.name("team/cache:main")
    sandbox.ok("build", "--cache-to", f"type=registry,ref={name}", "-", stdin=text)
    blobs = [path for path in server.data.rglob("data") if path.read_bytes()[:2] == b"\x1f\x8b"]
    assert blobs
    for path in blobs:
        layer = gzip.decompress(path.read_bytes())
        assert b"app\n" in layer
        path.write_bytes(gzip.compress(layer.replace(b"app\n", b"bad\n")).ljust(path.stat().st_size, b"\0")[: path.stat().st_size])
    with command_line(tmp_path / "cold", (busybox_tar, "busybox")) as cold:
        told = cold("build", "--cache-from", name, "-", stdin=text)
        assert told.status == 1
        assert "expected sha256:" in told.err
        image_verify.verify_store(cold.root)
