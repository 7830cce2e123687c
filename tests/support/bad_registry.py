"""A registry on loopback that misbehaves as it is told: the distribution API over images in memory, strict about what it is asked.

`fault(METHOD, part of the path, fault…)` puts faults before the next answers to such requests, one each; without one it behaves.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any  # a manifest's JSON

from sandbox.engine import Engine
from tests.support import image_verify

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_PATIENCE = 30


@dataclass
class Reply:
    """What will be sent. `cut`: after so many bytes of the body the connection is closed; `gate`: there it waits until that is set;
    `piece`: it is sent in pieces of so many bytes, with a `pause` (seconds) before each."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    gate: threading.Event | None = None
    piece: int | None = None
    pause: float = 0.0


Fault = Callable[[Reply, "BaseHTTPRequestHandler"], Reply]


def cut(size: int) -> Fault:
    """The connection is cut after so many bytes of the body."""
    return lambda reply, _: Reply(reply.status, reply.body, reply.headers, cut=size)


def gone(reply: Reply, handler: BaseHTTPRequestHandler) -> Reply:
    """What was asked is done, and the connection is cut before a byte of the answer."""
    handler.close_connection = True
    handler.connection.shutdown(2)
    return reply


def held(size: int, gate: threading.Event) -> Fault:
    """After so many bytes nothing comes until the gate is set."""
    return lambda reply, _: Reply(reply.status, reply.body, reply.headers, cut=size, gate=gate)


def trickled(piece: int, pause: float) -> Fault:
    """So many bytes come at a time, with that many seconds between them."""
    return lambda reply, _: Reply(reply.status, reply.body, reply.headers, piece=piece, pause=pause)


def status(code: int, **headers: str) -> Fault:
    """Another status and an empty body."""
    return lambda *_: Reply(code, b"", {name.replace("_", "-"): value for name, value in headers.items()})


def body(data: bytes) -> Fault:
    """Another body, with the length that it has."""
    return lambda reply, _: Reply(reply.status, data, reply.headers)


def good(reply: Reply, _: BaseHTTPRequestHandler) -> Reply:
    """None: this answer is as it should be."""
    return reply


@dataclass(frozen=True)
class Asked:
    """One request, and how much of the body of its answer was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    sent: int = 0


@dataclass
class BadRegistry:
    """`blobs` by digest and `manifests` by NAME/TAG-or-digest and `pages` by path are what it has; `asked`
    what it was asked. `token`: the only one it lets in;
    `realm`: where it says that is. `ranges` False: a Range is not heeded."""

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    token: str | None = None
    password: str | None = None
    realm: str = ""
    ranges: bool = True
    _faults: list[tuple[str, str, Fault]] = field(default_factory=list)

    @property
    def host(self) -> str:
        """What image names begin with."""
        return self.url.removeprefix("http://")

    def fault(self, method: str, path: str, *faults: Fault) -> None:
        """The next answers to such requests, one fault each."""
        self._faults += [(method, path, fault) for fault in faults]

    def requests(self, method: str, path: str = "") -> list[Asked]:
        """Those so far."""
        with self.changed:
            return [asked for asked in self.asked if asked.method == method and path in asked.path]

    def wait_asked(self, count: int, method: str, path: str) -> None:
        """Until so many such requests came."""
        with self.changed:
            done = self.changed.wait_for(lambda: sum(a.method == method and path in a.path for a in self.asked) >= count, _PATIENCE)
        assert done, f"{method} {path}: fewer than {count}"

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The next one for this request."""
        with self.changed:
            for place, (wanted, part, fault) in enumerate(self._faults):
                if wanted == method and part in path:
                    del self._faults[place]
                    return fault
        return None

    @property
    def is_spent(self) -> bool:
        """Whether every fault has happened."""
        return not self._faults

    # images

    def add_image(
        self, name: str, *layers: bytes, change: Callable[[dict[str, Any]], object] | None = None, **config: Any
    ) -> dict[str, Any]:
        """An image of these layers (tars, gzip or not) as `repository:tag`, its manifest changed before it is stored."""
        plain = [gzip.decompress(layer) if layer[:2] == b"\x1f\x8b" else layer for layer in layers]
        diff_ids = [digest_of(tar) for tar in plain]
        written = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}, **config}
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._blob("application/vnd.oci.image.config.v1+json", json.dumps(written).encode()),
            "layers": [self._blob(_layer_type(layer), layer) for layer in layers],
        }
        if change:
            change(manifest)
        self.put_manifest(name, manifest)
        return manifest

    def put_manifest(self, name: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """Store a document under `repository:tag` and its digest; its descriptor."""
        raw = json.dumps(manifest).encode()
        repository, _, tag = name.partition(":")
        self.manifests[f"{repository}/{tag}"] = self.manifests[f"{repository}/{digest_of(raw)}"] = (manifest["mediaType"], raw)
        return {"mediaType": manifest["mediaType"], "digest": digest_of(raw), "size": len(raw)}

    def _blob(self, kind: str, data: bytes) -> dict[str, Any]:
        self.blobs[digest_of(data)] = data
        return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


def digest_of(data: bytes) -> str:
    """sha256:…"""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _layer_type(layer: bytes) -> str:
    return "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if layer[:2] == b"\x1f\x8b" else "")


def layer_of(name: str, size: int, seed: int = 0) -> bytes:
    """A tar with one file that does not compress."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, io.BytesIO(Random(seed).randbytes(size)))
    return out.getvalue()


@contextmanager
def verified_engine(root: Path) -> Iterator[Engine]:
    """An empty engine to stand it; at the end its store is whole."""
    with Engine(root) as engine:
        yield engine
        engine.prune()
    image_verify.verify_store(root)


@contextmanager
def bad_registry() -> Iterator[BadRegistry]:
    """A server until the block ends."""
    registry = BadRegistry()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(registry))
    server.daemon_threads = True  # one may be held, or wait for a client that was killed
    registry.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


_UPLOAD = re.compile(r"/v2/([^?]+)/blobs/uploads/([0-9]*)(?:\?(.*))?")


def _handler(registry: BadRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(self._get())

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            number = str(len(registry.uploads))
            registry.uploads[number] = bytearray()
            repository = _UPLOAD.fullmatch(self.path)
            assert repository, self.path
            self._answer(Reply(202, b"", {"Location": f"/v2/{repository[1]}/blobs/uploads/{number}"}))

        def do_PATCH(self) -> None:
            self._take()
            repository, number = self._upload()
            size = len(registry.uploads[number])
            self._answer(Reply(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{number}", "Range": f"0-{size - 1}"}))

        def do_PUT(self) -> None:
            if "/manifests/" in self.path:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                registry.manifests[self.path.removeprefix("/v2/").replace("/manifests/", "/")] = (self.headers["Content-Type"], raw)
                self._answer(Reply(201))
                return
            self._take()
            data = bytes(registry.uploads.pop(self._upload()[1]))
            wanted = self.path.rpartition("digest=")[2].replace("%3A", ":")
            if digest_of(data) != wanted:
                self._answer(Reply(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}'))
                return
            registry.blobs[wanted] = data
            self._answer(Reply(201))

        def _upload(self) -> tuple[str, str]:
            found = _UPLOAD.fullmatch(self.path)
            assert found, self.path
            return found[1], found[2]

        def _take(self) -> None:
            """The body, up to where a fault `cut`s it."""
            left = int(self.headers.get("Content-Length") or 0)
            fault = registry.take_fault(f"{self.command} body", self.path)
            limit = fault(Reply(0), self).cut if fault else None
            while left and (data := self.rfile.read(min(left, 65536, *([limit] if limit else [])))):
                registry.uploads[self._upload()[1]] += data
                left -= len(data)
                if limit is not None and (limit := limit - len(data)) <= 0:
                    self._note(0, 0)
                    self.close_connection = True
                    self.connection.shutdown(2)
                    raise ConnectionAbortedError

        def _get(self) -> Reply:
            if (refusal := self._refusal()) is not None:
                return refusal
            if (page := registry.pages.get(self.path.partition("?")[0])) is not None:
                return Reply(200, page)
            if self.path == "/v2/":
                return Reply(200)
            path = self.path.removeprefix("/v2/").partition("?")[0]
            if found := _UPLOAD.fullmatch(self.path):
                if found[2] not in registry.uploads:
                    return Reply(404)
                size = len(registry.uploads[found[2]])
                return Reply(204, b"", {"Range": f"0-{size - 1}", "Location": self.path})
            if "/manifests/" in path and (stored := registry.manifests.get(path.replace("/manifests/", "/"))):
                return Reply(200, stored[1], {"Content-Type": stored[0], "Docker-Content-Digest": digest_of(stored[1])})
            if "/blobs/" in path and (blob := registry.blobs.get(path.rpartition("/")[2])) is not None:
                return self._ranged(blob)
            return Reply(404, b'{"errors": [{"code": "UNKNOWN", "message": "not here"}]}')

        def _refusal(self) -> Reply | None:
            given = self.headers.get("Authorization")
            if registry.token is not None and given != f"Bearer {registry.token}":
                realm = f'Bearer realm="{registry.realm}",service="bad"'
                return Reply(401, b"", {"WWW-Authenticate": realm})
            if registry.password is not None and given != "Basic " + base64.b64encode(registry.password.encode()).decode():
                return Reply(401, b"", {"WWW-Authenticate": 'Basic realm="bad"'})
            return None

        def _ranged(self, blob: bytes) -> Reply:
            text = self.headers.get("Range")
            if text is None or not registry.ranges:
                return Reply(200, blob)
            start = int(text.removeprefix("bytes=").rstrip("-"))
            return Reply(206, blob[start:], {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"})

        def _answer(self, reply: Reply) -> None:
            if fault := registry.take_fault(self.command, self.path):
                reply = fault(reply, self)
            self._note(reply.status, len(reply.body[: reply.cut]))  # before its asker can know the answer
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            data = b"" if self.command == "HEAD" else reply.body[: reply.cut]
            for start in range(0, len(data), reply.piece or len(data) or 1):
                threading.Event().wait(reply.pause)
                self.wfile.write(data[start : start + (reply.piece or len(data))])
                self.wfile.flush()
            if reply.gate is not None:
                assert reply.gate.wait(_PATIENCE)
                self.wfile.write(reply.body[reply.cut :])
            elif reply.cut is not None:
                self.close_connection = True
                self.connection.shutdown(2)

        def _note(self, status: int, sent: int) -> None:
            with registry.changed:
                registry.asked.append(Asked(self.command, self.path, dict(self.headers), status, sent))
                registry.changed.notify_all()

        def handle(self) -> None:
            try:
                super().handle()
            except (ConnectionError, ValueError):
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal of the tests."""

    return Handler
