"""Registries that misbehave: what is wrong is named, the store is as it was, and the next try succeeds."""

from __future__ import annotations

import gzip
import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any  # a manifest's JSON

import pytest

from sandbox import Engine
from sandbox.errors import DigestMismatch, InvalidImage, NotInRegistry, RateLimited, RegistryError, Unauthorized, UnsafeLayer
from sandbox.image import packing, plain
from sandbox.image.compression import Compression, compressed
from sandbox.image.packing import Packing
from sandbox.image.reference import Reference
from sandbox.image.registry.access import Access, Terms
from sandbox.image.registry.credentials import Credential
from sandbox.image.registry.progress import BlobProgress, TransferEvent
from sandbox.image.registry.pulling import pull as pull_into
from sandbox.image.registry.tokens import Authorizer
from sandbox.image.registry.wire import Patience, Wire
from sandbox.image.store import Store
from tests.support import image_verify
from tests.support.bad_registry import (
    INDEX,
    BadRegistry,
    Fault,
    Reply,
    bad_registry,
    body,
    cut,
    digest_of,
    gone,
    good,
    held,
    layer_of,
    status,
    trickled,
    verified_engine,
)
from tests.support.command_line import CommandLine, wait_all
from tests.support.host import requires
from tests.support.small_disk import small_disk

pytestmark = requires("root")
SIZE = 3 << 20
LAYERS = (layer_of("one", SIZE, 1), layer_of("two", SIZE, 2))
QUICK = Patience(read=10.0, tries=4, pause=0.01)


@pytest.fixture
def registry() -> Iterator[BadRegistry]:
    """One that has team/app:1, of two layers."""
    with bad_registry() as made:
        made.add_image("team/app:1", *LAYERS)
        yield made


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An empty engine; at the end its store is whole."""
    with verified_engine(tmp_path / "engine") as made:
        yield made


def pull(
    engine: Engine, registry: BadRegistry, name: str = "team/app:1", *, credential: Credential | None = None, patience: Patience = QUICK
) -> None:
    engine.pull(f"{registry.host}/{name}", terms=Terms(credential=credential, patience=patience))


def is_here(engine: Engine, registry: BadRegistry, name: str = "team/app:1") -> bool:
    """With the very bytes that the registry has."""
    image = engine.image(f"{registry.host}/{name}")
    tree = Store(engine.root).tree(image.top)
    return all(tree.read(f"/{file}", limit=SIZE) == layer[512 : 512 + SIZE] for file, layer in zip(("one", "two"), LAYERS, strict=True))


def blob(number: int) -> str:
    return f"/blobs/{digest_of(LAYERS[number])}"


# Cut, slow and busy


@pytest.mark.parametrize("ranges", [True, False])
def test_a_layer_cut_in_the_middle_is_taken_up_again(engine: Engine, registry: BadRegistry, *, ranges: bool) -> None:
    registry.ranges = ranges
    registry.fault("GET", blob(0), cut(SIZE // 3), cut(SIZE // 2))
    pull(engine, registry)
    assert registry.is_spent and is_here(engine, registry)
    starts = [int(asked.headers.get("Range", "bytes=0-")[6:-1]) for asked in registry.requests("GET", blob(0))]
    assert len(starts) == 3 and starts == sorted(starts) and 0 < starts[1] < starts[2]
    moved = sum(asked.sent for asked in registry.requests("GET", blob(0)))
    assert (moved <= len(LAYERS[0]) + (1 << 20)) == ranges, "nothing is sent twice, by a server that heeds the range"


@pytest.mark.parametrize("path", ["/v2/", "/manifests/", "/blobs/"])
def test_a_connection_that_is_cut_before_an_answer_is_tried_again(engine: Engine, registry: BadRegistry, path: str) -> None:
    registry.fault("GET", path, status(503), status(502))
    pull(engine, registry)
    assert registry.is_spent and is_here(engine, registry)


def test_a_manifest_cut_in_the_middle_is_asked_for_again(engine: Engine, registry: BadRegistry) -> None:
    registry.fault("GET", "/manifests/", cut(50))
    pull(engine, registry)
    assert registry.is_spent and is_here(engine, registry)


def test_a_registry_that_only_fails_is_given_up(engine: Engine, registry: BadRegistry) -> None:
    registry.fault("GET", "/manifests/", *[status(500)] * QUICK.tries)
    with pytest.raises(RegistryError, match=r"says 500"):
        pull(engine, registry)
    assert len(registry.requests("GET", "/manifests/")) == QUICK.tries
    assert engine.images() == []
    pull(engine, registry)
    assert is_here(engine, registry)


def test_a_registry_that_says_nothing_is_given_up(engine: Engine, registry: BadRegistry) -> None:
    gate = threading.Event()
    registry.fault("GET", blob(0), *[held(1000, gate)] * 2)
    with pytest.raises(RegistryError, match="no answer for too long"):
        pull(engine, registry, patience=Patience(read=0.2, tries=2, pause=0.01))
    gate.set()
    pull(engine, registry)
    assert is_here(engine, registry)


def test_a_registry_that_trickles_is_waited_for_and_its_bytes_are_told_as_they_come(engine: Engine, registry: BadRegistry) -> None:
    pieces, told = 12, list[int]()
    registry.fault("GET", blob(0), trickled(SIZE // pieces, 0.15))

    def note(event: TransferEvent) -> None:
        if isinstance(event, BlobProgress) and event.digest == digest_of(LAYERS[0]) and event.phase == "downloading":
            told.append(event.done)

    patience = Patience(read=1.0, tries=2, pause=0.01)  # for silence, not for the whole
    engine.pull(f"{registry.host}/team/app:1", terms=Terms(patience=patience), on_event=note)
    assert is_here(engine, registry)
    assert len(registry.requests("GET", blob(0))) == 1, "it is not asked again"
    assert len(told) >= pieces // 2, "a MiB at a time would be four"


class _Recorded(threading.Event):
    """Passes no time, and knows how much it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout)
        return self.is_set()


def test_a_busy_registry_is_left_alone_as_long_as_it_asks(engine: Engine, registry: BadRegistry) -> None:
    registry.fault("GET", "/manifests/", status(429, Retry_After="7"), status(503, Retry_After="11"))
    with Access({}, Terms(patience=QUICK)) as access:
        access.wire.stop = recorded = _Recorded()
        pull_into(Store(engine.root), access, Reference.parse(f"{registry.host}/team/app:1"))
    assert [pause for pause in recorded.pauses if pause and pause > 1] == [7.0, 11.0]
    assert is_here(engine, registry)


def test_a_registry_that_asks_for_an_hour_is_an_error_that_says_so(engine: Engine, registry: BadRegistry) -> None:
    registry.fault("GET", "/manifests/", status(429, Retry_After="3600", RateLimit_Remaining="0;w=21600"))
    with pytest.raises(RateLimited, match="too many requests") as told:
        pull(engine, registry)
    assert told.value.retry_after == 3600
    assert "3600" in (told.value.hint or "")
    assert len(registry.requests("GET", "/manifests/")) == 1


def test_how_much_a_registry_still_allows_is_told(registry: BadRegistry, tmp_path: Path) -> None:
    def limited(reply: Reply, _: object) -> Reply:
        return Reply(reply.status, reply.body, {**reply.headers, "RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "97;w=21600"})

    registry.fault("GET", "/manifests/", limited)
    told = CommandLine(tmp_path / "root").ok("pull", f"{registry.host}/team/app:1")
    assert "the registry allows 97 of 100 more requests" in told.err


# Wrong bytes

OTHER = b"x" * len(LAYERS[0])
WRONG: dict[str, tuple[Fault, str]] = {
    "another content": (body(OTHER), "expected sha256:"),
    "another content, slowly": (lambda *asked: trickled(1 << 18, 0.05)(body(OTHER)(*asked), asked[1]), "expected sha256:"),
    "too short": (body(LAYERS[0][:-1000]), f"expected {len(LAYERS[0])} bytes"),
    "too long": (body(LAYERS[0] + b"more"), "got more"),
    "empty": (body(b""), "bytes, got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_layer_that_is_not_what_was_promised_is_refused(engine: Engine, registry: BadRegistry, name: str) -> None:
    fault, message = WRONG[name]
    registry.fault("GET", blob(0), fault)
    with pytest.raises(DigestMismatch, match=message):
        pull(engine, registry)
    assert engine.images() == [] and not Store(engine.root).has_blob(digest_of(LAYERS[0]))
    pull(engine, registry)
    assert is_here(engine, registry)


@pytest.mark.parametrize("part", ["config", "manifest by digest"])
def test_a_document_that_is_not_what_was_promised_is_refused(engine: Engine, registry: BadRegistry, part: str) -> None:
    manifest = registry.add_image("team/app:1", *LAYERS)
    raw = registry.manifests["team/app/1"][1]
    path = f"/blobs/{manifest['config']['digest']}" if part == "config" else f"/manifests/{digest_of(raw)}"
    registry.fault("GET", path, lambda reply, _: Reply(200, reply.body.replace(b"linux", b"Linux").replace(b'": ', b'" :'), reply.headers))
    with pytest.raises(DigestMismatch):
        pull(engine, registry, f"team/app@{digest_of(raw)}")
    assert engine.images() == []


def _layer(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _cut_gzip(registry: BadRegistry) -> None:
    """Every digest is right, of a blob that is half a gzip."""
    half = _layer(LAYERS[0])[: SIZE // 2]
    registry.add_image("team/bad:1", _layer(LAYERS[0]), change=lambda manifest: manifest["layers"][0].update(_described(registry, half)))


def _described(registry: BadRegistry, data: bytes) -> dict[str, Any]:
    registry.blobs[digest_of(data)] = data
    return {"digest": digest_of(data), "size": len(data)}


def test_a_gzip_that_ends_in_the_middle_is_refused(engine: Engine, registry: BadRegistry) -> None:
    _cut_gzip(registry)
    with pytest.raises(InvalidImage, match="damaged compressed stream"):
        pull(engine, registry, "team/bad:1")
    assert engine.images() == []


def test_a_layer_that_is_another_tar_than_the_config_says_is_refused(engine: Engine, registry: BadRegistry) -> None:
    registry.add_image("team/bad:1", LAYERS[0], rootfs={"type": "layers", "diff_ids": [digest_of(LAYERS[1])]})
    with pytest.raises(DigestMismatch, match="diff_id"):
        pull(engine, registry, "team/bad:1")
    assert engine.images() == []


def test_a_layer_that_leads_outside_is_refused(engine: Engine, registry: BadRegistry) -> None:
    registry.add_image("team/bad:1", LAYERS[0], layer_of("../canary", 10))
    with pytest.raises(UnsafeLayer):
        pull(engine, registry, "team/bad:1")
    assert engine.images() == [] and not (engine.root / "snapshots/canary").exists()


@pytest.mark.parametrize("is_bomb", [True, False])
def test_a_decompression_bomb_ends_at_a_cap(
    engine: Engine, registry: BadRegistry, monkeypatch: pytest.MonkeyPatch, *, is_bomb: bool
) -> None:
    monkeypatch.setattr(plain, "_BOMB_FLOOR", (4 << 20) if is_bomb else (8 << 20))
    monkeypatch.setattr(plain, "_BOMB_RATIO", 1)
    bomb = layer_of("zeros", 0)[:512] + bytes(6 << 20)
    registry.add_image("team/bomb:1", _layer(bomb))
    if is_bomb:
        with pytest.raises(InvalidImage, match="so few compressed bytes cannot mean"):
            pull(engine, registry, "team/bomb:1")
    else:
        pull(engine, registry, "team/bomb:1")
    assert len(engine.images()) == (0 if is_bomb else 1)


# Manifests


def _foreign(manifest: dict[str, Any]) -> None:
    manifest["layers"][1].update(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://127.0.0.1:1/layer"])


def _many(manifest: dict[str, Any]) -> None:
    manifest["layers"] = manifest["layers"][:1] * 501


MANIFESTS: dict[str, tuple[Any, str]] = {
    "a foreign layer": (_foreign, "is foreign"),
    "501 layers": (_many, "501 layers"),
    "10 MB": (lambda manifest: manifest.update(annotations={"x": "y" * (10 << 20)}), "larger than 4 MiB"),
    "another kind of layer": (lambda manifest: manifest["layers"][0].update(mediaType="text/html"), "unknown kind"),
    "no image": (lambda manifest: manifest["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json"), "no image but"),
    "a layer less": (lambda manifest: manifest["layers"].pop(), "1 layers in the manifest, 2 diff_ids"),
    "a digest that is a path": (lambda manifest: manifest["layers"][0].update(digest="sha256:../../x"), "not of the form"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_cannot_be_taken_is_refused_before_any_layer_is_asked_for(engine: Engine, registry: BadRegistry, name: str) -> None:
    change, message = MANIFESTS[name]
    registry.add_image("team/bad:1", *LAYERS, change=change)
    with pytest.raises((InvalidImage, RegistryError), match=message):
        pull(engine, registry, "team/bad:1")
    assert not [asked for number in (0, 1) for asked in registry.requests("GET", blob(number))]
    assert engine.images() == []


def test_500_layers_are_taken(engine: Engine, registry: BadRegistry) -> None:
    registry.add_image("team/many:1", *[layer_of(f"f{number}", 10) for number in range(500)])
    pull(engine, registry, "team/many:1")
    image = engine.image(f"{registry.host}/team/many:1")
    assert Store(engine.root).tree(image.top).read("/f499") and len(image.diff_ids) == 500


def _index(registry: BadRegistry, *platforms: str) -> None:
    manifests = []
    for text in platforms:
        architecture, _, variant = text.partition("/")
        registry.add_image(f"team/{architecture}{variant}:1", *LAYERS, architecture=architecture)
        raw = registry.manifests[f"team/{architecture}{variant}/1"]
        described = registry.put_manifest("team/index:x", json.loads(raw[1]))
        manifests.append(
            {**described, "platform": {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}}
        )
    registry.put_manifest("team/index:1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


def test_an_index_without_our_platform_says_what_there_is(engine: Engine, registry: BadRegistry) -> None:
    _index(registry, "riscv64", "arm/v7")
    with pytest.raises(NotInRegistry, match="no image for linux/") as told:
        pull(engine, registry, "team/index:1")
    assert told.value.hint == "there is linux/arm/v7, linux/riscv64"
    assert engine.images() == []
    engine.pull(f"{registry.host}/team/index:1", platform="linux/arm/v8", terms=Terms(patience=QUICK))
    assert len(engine.images()) == 1


# Credentials


def test_a_redirect_to_another_host_takes_no_credentials_along(engine: Engine, registry: BadRegistry) -> None:
    registry.password = "who:secret"
    with bad_registry() as storage:
        storage.blobs.update(registry.blobs)
        near = f"{registry.url}/v2/other/app{blob(1)}"
        registry.fault("GET", blob(0), status(307, Location=f"{storage.url}/v2/x/y{blob(0)}?signature=abc"))
        registry.fault("GET", f"/app{blob(1)}", status(307, Location=near))
        pull(engine, registry, credential=Credential("who", "secret"))
        asked = storage.requests("GET")
        assert asked and not any("Authorization" in each.headers for each in asked)
    assert registry.requests("GET", "/v2/other/")[0].headers["Authorization"], "the same host may know who we are"
    assert is_here(engine, registry)


def test_a_redirect_that_never_ends_is_an_error(engine: Engine, registry: BadRegistry) -> None:
    registry.fault("GET", blob(0), *[status(307, Location=f"/v2/team/app{blob(0)}")] * 20)
    with pytest.raises(RegistryError, match="redirects"):
        pull(engine, registry)
    assert engine.images() == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/x"])
def test_a_redirect_to_what_is_no_web_address_is_refused(engine: Engine, registry: BadRegistry, target: str) -> None:
    registry.fault("GET", blob(0), status(307, Location=target))
    with pytest.raises(RegistryError, match="which is no web address"):
        pull(engine, registry)


class _TokenServer:
    """Gives token after token at `/token`, on a host of its own."""

    def __init__(self, server: BadRegistry) -> None:
        self.server, self.given = server, 0

    def __call__(self, *_: object) -> Reply:
        self.given += 1
        return Reply(200, f'{{"token": "token-{self.given}", "expires_in": 300}}'.encode())


def test_a_token_of_another_host_goes_to_the_registry_alone(engine: Engine, registry: BadRegistry) -> None:
    with bad_registry() as tokens, bad_registry() as storage:
        storage.blobs.update(registry.blobs)
        give = _TokenServer(tokens)
        tokens.fault("GET", "/token", *[give] * 10)
        registry.token, registry.realm = "never", f"{tokens.url}/token"
        registry.fault("GET", blob(0), status(307, Location=f"{storage.url}/v2/x/y{blob(0)}"))
        with pytest.raises(Unauthorized):  # a token that is not taken is no reason to ask for ever
            pull(engine, registry, credential=Credential("who", "secret"))
        asked = len(tokens.requests("GET", "/token"))
        assert 1 <= asked <= 4
        registry.token = f"token-{asked + 1}"
        pull(engine, registry, credential=Credential("who", "secret"))
        assert all(each.headers["Authorization"].startswith("Basic ") for each in tokens.requests("GET", "/token"))
        assert not any(each.headers.get("Authorization", "").startswith("Basic ") for each in registry.asked)
        assert not any("Authorization" in each.headers for each in storage.asked)
    assert is_here(engine, registry)


def test_a_token_that_has_expired_is_fetched_again(engine: Engine, registry: BadRegistry) -> None:
    with bad_registry() as tokens:
        give = _TokenServer(tokens)
        tokens.fault("GET", "/token", *[give] * 10)
        registry.token, registry.realm = "token-1", f"{tokens.url}/token"

        def expire(reply: Reply, _: object) -> Reply:
            registry.token = f"token-{give.given + 1}"
            return reply

        registry.fault("GET", "/manifests/", expire)
        pull(engine, registry)
        assert give.given >= 2
    assert is_here(engine, registry)


def test_a_password_goes_to_no_token_server_without_tls() -> None:
    authorizer = Authorizer(Wire({}, QUICK), "https://registry.example", True, lambda: Credential("who", "secret"))

    class Answered:
        def headers(self, _: str) -> list[str]:
            return ['Bearer realm="http://tokens.example/token"']

    with pytest.raises(RegistryError, match="without TLS"):
        authorizer.challenged(Answered(), (), None)  # type: ignore[arg-type]  # what it reads of one


def test_a_wrong_password_is_named_and_not_shown(engine: Engine, registry: BadRegistry) -> None:
    registry.password = "who:secret"
    with pytest.raises(Unauthorized) as told:
        pull(engine, registry, credential=Credential("who", "hunter2"))
    assert "who" in str(told.value) and "hunter2" not in f"{told.value}{told.value.hint}{told.value!r}"


# Several at once, killed, full


def test_two_pulls_at_once_do_the_work_once(registry: BadRegistry, tmp_path: Path) -> None:
    gate = threading.Event()
    registry.fault("GET", blob(0), held(SIZE // 2, gate))
    sandbox = CommandLine(tmp_path / "root")
    with sandbox.going("pull", f"{registry.host}/team/app:1") as one:
        registry.wait_asked(1, "GET", blob(0))
        with sandbox.going("pull", f"{registry.host}/team/app:1") as two:
            registry.wait_asked(2, "GET", "/manifests/")
            gate.set()
            assert [done.status for done in wait_all([one, two])] == [0, 0]
    for number in (0, 1):
        assert len(registry.requests("GET", blob(number))) == 1
    image_verify.verify_store(sandbox.root)
    with Engine(sandbox.root) as engine:
        assert is_here(engine, registry)


def test_a_layer_of_two_images_is_fetched_once_by_pulls_at_once(engine: Engine, registry: BadRegistry) -> None:
    registry.add_image("team/other:1", *reversed(LAYERS), layer_of("three", SIZE, 3))
    gate = threading.Event()
    registry.fault("GET", blob(0), held(SIZE // 2, gate))
    with ThreadPoolExecutor(2) as pool:
        pulls = [pool.submit(pull, engine, registry, name) for name in ("team/app:1", "team/other:1")]
        registry.wait_asked(2, "GET", "/manifests/")
        registry.wait_asked(1, "GET", blob(0))
        gate.set()
        for each in pulls:
            each.result()
    assert [len(registry.requests("GET", blob(number))) for number in (0, 1)] == [1, 1]
    assert is_here(engine, registry) and len(engine.images()) == 2


def test_a_pull_that_is_killed_is_gone_on_with(registry: BadRegistry, tmp_path: Path) -> None:
    gate = threading.Event()
    registry.fault("GET", blob(0), held(SIZE // 2, gate))
    sandbox = CommandLine(tmp_path / "root")
    part = sandbox.root / "blobs/sha256" / f".part-{digest_of(LAYERS[0])[7:]}"
    with sandbox.going("pull", f"{registry.host}/team/app:1") as process:
        registry.wait_asked(1, "GET", blob(1))
        registry.wait_asked(1, "GET", blob(0))
        _grown(part, 1 << 19)
        process.kill()
        process.wait()
    gate.set()
    assert image_verify.broken(sandbox.root) == []
    assert sandbox.ok("images", "-q").lines == []
    sandbox.ok("pull", f"{registry.host}/team/app:1")
    again = registry.requests("GET", blob(0))[1]
    assert int(again.headers["Range"][6:-1]) >= 1 << 19
    sandbox.ok("prune", "-f")
    image_verify.verify_store(sandbox.root)
    with Engine(sandbox.root) as engine:
        assert is_here(engine, registry)


def _grown(path: Path, size: int) -> None:
    """Until a file has so many bytes (its writer tells nobody)."""
    for _ in range(1000):
        if path.exists() and path.stat().st_size >= size:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{path}: does not grow")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB."""
    with small_disk(tmp_path / "small", 5) as place:
        yield place


def test_a_disk_that_is_full_in_the_middle(registry: BadRegistry, small: Path) -> None:
    sandbox = CommandLine(small / "root")
    told = sandbox("pull", f"{registry.host}/team/app:1")
    assert told.status == 1 and "no space" in told.err.lower() and "sandbox prune" in told.err
    assert sandbox.ok("images", "-q").lines == [] and image_verify.broken(sandbox.root) == []
    subprocess.run(["mount", "-o", "remount,size=40m", small], check=True)
    sandbox.ok("pull", f"{registry.host}/team/app:1")
    assert len(sandbox.ok("images", "-q").lines) == 1
    image_verify.verify_store(sandbox.root)


# Pushes


@pytest.fixture
def built(engine: Engine, registry: BadRegistry, tmp_path: Path) -> str:
    """An image whose one layer is sent in pieces."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context/file").write_bytes(layer_of("x", 6 << 20, 3))
    name = f"{registry.host}/sent/app:1"
    engine.build(tmp_path / "context", dockerfile="FROM scratch\nCOPY file /\n", tags=[name])
    return name


def sent(engine: Engine, name: str) -> None:
    engine.push(name, packing=Packing("none"), terms=Terms(patience=QUICK))


def is_there(engine: Engine, registry: BadRegistry, name: str) -> bool:
    diff_id = engine.image(name).diff_ids[0]
    return digest_of(registry.blobs.get(diff_id, b"")) == diff_id and "sent/app/1" in registry.manifests


def test_an_upload_cut_in_the_middle_goes_on_where_the_registry_was(engine: Engine, registry: BadRegistry, built: str) -> None:
    registry.fault("PATCH body", "/uploads/", cut(2 << 20))
    sent(engine, built)
    assert registry.is_spent and is_there(engine, registry, built)
    ranges = [asked.headers["Content-Range"] for asked in registry.requests("PATCH") if asked.status]
    assert len(ranges) == 1 and int(ranges[0].partition("-")[0]) >= 2 << 20


STAGES = [("GET", "/v2/"), ("HEAD", "/blobs/"), ("POST", "/uploads/"), ("PATCH", "/uploads/"), ("PUT", "/uploads/"), ("PUT", "/manifests/")]


@pytest.mark.parametrize(("method", "path"), STAGES)
def test_an_answer_to_a_push_that_never_comes_is_no_end_of_it(
    engine: Engine, registry: BadRegistry, built: str, method: str, path: str
) -> None:
    registry.fault(method, path, gone)
    sent(engine, built)
    assert registry.is_spent and is_there(engine, registry, built)


def test_a_push_that_fails_leaves_the_store_and_a_second_one_succeeds(engine: Engine, registry: BadRegistry, built: str) -> None:
    before = engine.image(built).manifest.raw
    registry.fault("POST", "/uploads/", *[status(503)] * QUICK.tries)
    with pytest.raises(RegistryError, match="says 503"):
        sent(engine, built)
    assert registry.is_spent and engine.image(built).manifest.raw == before and not registry.manifests.get("sent/app/1")
    sent(engine, built)
    assert is_there(engine, registry, built)


def test_a_registry_that_keeps_other_bytes_is_found_out(engine: Engine, registry: BadRegistry, built: str) -> None:
    registry.fault("PUT", "/uploads/", status(400))
    with pytest.raises(RegistryError, match="says 400"):
        sent(engine, built)
    registry.fault("PUT", "/manifests/", lambda *_: Reply(201, b"", {"Docker-Content-Digest": f"sha256:{'0' * 64}"}))
    with pytest.raises(DigestMismatch, match="stored"):
        sent(engine, built)
    sent(engine, built)
    assert is_there(engine, registry, built)


def test_no_layer_is_compressed_twice(
    engine: Engine, registry: BadRegistry, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(stream: IO[bytes], kind: Compression, level: int | None = None) -> Iterator[bytes]:
        calls.append(kind)
        return compressed(stream, kind, level)

    monkeypatch.setattr(packing, "compressed", counted)
    terms = Terms(patience=QUICK)
    engine.save([built], tmp_path / "one.tar", compression="gzip")
    assert calls == ["gzip"]
    engine.push(built, packing=Packing("gzip"), terms=terms)
    engine.push(built, f"{registry.host}/sent/again:1", packing=Packing("gzip", level=3), terms=terms)
    engine.save([built], tmp_path / "two.tar", compression="gzip", format="oci")
    assert calls == ["gzip"]
    engine.save([built], tmp_path / "three.tar", compression="zstd", level=3)
    engine.push(built, packing=Packing("zstd"), terms=terms)
    assert calls == ["gzip", "zstd"]
    pull(engine, registry)
    pulled = f"{registry.host}/team/app:1"
    engine.push(pulled, f"{registry.host}/sent/pulled:1", packing=Packing("gzip"), terms=terms)
    assert calls == ["gzip", "zstd"], "what was pulled is sent as it came"
    for _ in range(2):
        engine.push(pulled, f"{registry.host}/sent/pulled:2", packing=Packing("gzip", force=True), terms=terms)
    assert calls == ["gzip", "zstd", "gzip", "gzip"], "unless that is asked for, and then once"


def test_an_upload_that_the_registry_has_forgotten_begins_anew(engine: Engine, registry: BadRegistry, built: str) -> None:
    registry.fault("PATCH body", "/uploads/", cut(2 << 20))
    registry.fault("GET", "/uploads/", status(404))
    sent(engine, built)
    assert registry.is_spent and is_there(engine, registry, built)
    assert len(registry.requests("POST", "/uploads/")) == 3  # the layer twice, the config


def test_the_manifest_is_sent_last_and_only_when_all_is_there(engine: Engine, registry: BadRegistry, built: str) -> None:
    registry.fault("PATCH", "/uploads/", *[status(400)] * 5)
    with pytest.raises(RegistryError, match="says 400"):
        sent(engine, built)
    assert not registry.requests("PUT", "/manifests/")
    registry.fault("PATCH", "/uploads/", good)
    while registry.take_fault("PATCH", "/uploads/"):
        continue
    sent(engine, built)
    assert is_there(engine, registry, built)


def test_a_busy_registry_takes_the_manifest_at_another_try(engine: Engine, registry: BadRegistry, built: str) -> None:
    registry.fault("PUT", "/manifests/", status(503), status(429, Retry_After="0"))
    sent(engine, built)
    assert registry.is_spent and is_there(engine, registry, built)
