"""One repository on one server: the operations of the distribution specification, each a request or two.

Nothing is trusted: a manifest is held against its digest and its own media type, a body is read with a cap.
"""

from __future__ import annotations

import threading
import urllib.parse
from collections.abc import Callable, Iterator

import msgspec
from msgspec.structs import replace

from sandbox.errors import DigestMismatch, InvalidImage, NotInRegistry, RegistryError
from sandbox.image.registry.hosts import Endpoint
from sandbox.image.registry.tokens import Authorizer, refused
from sandbox.image.registry.wire import Answer, Body, Broken, Request, Wire, shown
from sandbox.oci import DOCKER_INDEX, DOCKER_MANIFEST, INDEX_TYPE, MANIFEST_TYPE, Descriptor, Digest

MANIFESTS = (MANIFEST_TYPE, DOCKER_MANIFEST)
INDEXES = (INDEX_TYPE, DOCKER_INDEX)
MANIFEST_LIMIT = 4 << 20
"""Bytes of a manifest: what the distribution specification asks registries to take at least, and what most take at most."""
_ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
_ERRORS_LIMIT = 1 << 20
_LIST_LIMIT = 16 << 20
_MOST_PAGES = 1000


class _Shape(msgspec.Struct, rename="camel"):
    """What tells manifests and indexes apart, when a document claims to be both (CVE-2021-41190)."""

    schema_version: int = 0
    media_type: str | None = None
    manifests: msgspec.Raw = msgspec.Raw()
    layers: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


class _Problem(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Problems(msgspec.Struct):
    errors: list[_Problem] = []


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Catalog(msgspec.Struct):
    repositories: list[str] | None = None


_SHAPE, _PROBLEMS = msgspec.json.Decoder(_Shape), msgspec.json.Decoder(_Problems)
_TAGS, _CATALOG = msgspec.json.Decoder(_Tags), msgspec.json.Decoder(_Catalog)


class RawManifest(msgspec.Struct, frozen=True):
    """A manifest or index as a registry gave it: its bytes are what its digest is over."""

    media_type: str
    raw: bytes
    digest: Digest

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests of several platforms."""
        return self.media_type in INDEXES


class Connection(msgspec.Struct):
    """A server of the distribution API, its scheme found out at the first request, and who we are to it. `limit`: the last
    rate-limit headers it sent, as (limit, remaining)."""

    endpoint: Endpoint
    wire: Wire
    authorizer: Authorizer
    limit: tuple[str, str] | None = None
    _is_known: bool = False
    _greeting: threading.Lock = msgspec.field(default_factory=threading.Lock)
    """Held by whoever finds that out: meanwhile the scheme is a guess that nobody else may use."""

    def url(self, path: str) -> str:
        """A path below /v2/, under the scheme the server speaks."""
        self.hello()
        return self._below(path)

    def _below(self, path: str) -> str:
        return urllib.parse.urljoin(self.authorizer.url, f"/v2/{path}")

    def hello(self) -> None:
        """Find out how the server is spoken to and what it wants to know of us (GET /v2/). RegistryError, Unauthorized."""
        with self._greeting:
            if self._is_known:
                return
            answer = self._first()
            if answer.status == 401:
                self.authorizer.learn(answer)
            answer.done()
            self._is_known = True

    def _first(self) -> Answer:
        """TLS, or plain HTTP where that is allowed and TLS is not spoken."""
        verify = not self.endpoint.insecure
        if not self.endpoint.may_be_plain:
            return self._greet("https", verify=verify)
        try:
            # Without the CAs, which take 0.1 s to read: who may speak HTTP mostly does. Nothing secret is part of it.
            answer = self._greet("https", verify=False, retried=False)
        except Broken:
            return self._greet("http", verify=verify)
        if not verify:
            return answer
        answer.close()
        return self._greet("https", verify=True)

    def _greet(self, scheme: str, *, verify: bool, retried: bool = True) -> Answer:
        self.authorizer.url = f"{scheme}://{self.endpoint.host}"
        self.authorizer.verify = verify
        answer = self.wire.send(Request("GET", self._below(""), retried=retried), verify=verify)
        if answer.status not in (200, 401, 403):
            answer.close()
            raise RegistryError(f"{self.endpoint.host}: no registry answers there (status {answer.status})")
        return answer

    def ask(self, request: Request, scopes: tuple[str, ...] = ()) -> Answer:
        """Send with whatever proves us; once more when that has expired. Unauthorized, RegistryError, Broken."""
        self.hello()
        verify = self.authorizer.verify
        used = self.authorizer.header(scopes) if self._is_own(request.url) else None
        answer = self.wire.send(request.with_headers(Authorization=used) if used else request, verify=verify)
        if answer.status == 401 and self._is_own(answer.url):
            better = self.authorizer.challenged(answer, scopes, used)
            answer.done()
            if better is None:
                raise refused(self.authorizer.url, self.authorizer.identity())
            answer = self.wire.send(request.with_headers(Authorization=better), verify=verify)
        if answer.status in (401, 403):
            detail = _problem_text(answer)
            error = refused(self.authorizer.url, self.authorizer.identity())
            raise type(error)(f"{error}{f' ({detail})' if detail else ''}", hint=error.hint)
        self._note_limit(answer)
        return answer

    def _is_own(self, url: str) -> bool:
        """Upload locations may be on other hosts; those get no credentials."""
        return urllib.parse.urlsplit(url)[:2] == urllib.parse.urlsplit(self.authorizer.url)[:2]

    def _note_limit(self, answer: Answer) -> None:
        limit, left = answer.header("RateLimit-Limit"), answer.header("RateLimit-Remaining")
        if limit and left:
            self.limit = (limit, left)


class Repository(msgspec.Struct, frozen=True):
    """A repository; `actions` is what tokens are asked for: pull, or pull,push."""

    connection: Connection
    name: str
    actions: str = "pull"

    @property
    def host(self) -> str:
        """The server's name."""
        return self.connection.endpoint.host

    def _scopes(self, *more: str) -> tuple[str, ...]:
        return (f"repository:{self.name}:{self.actions}", *more)

    def _url(self, path: str) -> str:
        return self.connection.url(f"{self.name}/{path}")

    def _ask(self, method: str, url: str, *, body: Body | None = None, retried: bool = True, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.connection.ask(Request(method, url, named, body, retried), self._scopes())

    def check_login(self) -> None:
        """Whether the registry lets us in at all. Unauthorized, RegistryError."""
        answer = self.connection.ask(Request("GET", self.connection.url("")))
        if answer.status != 200:
            raise self._failed(answer, "login")
        answer.done()

    # manifests

    def manifest(self, name: str) -> RawManifest:
        """The manifest or index of a tag or digest. NotInRegistry, DigestMismatch, InvalidImage."""

        def ask() -> Answer:
            answer = self._ask("GET", self._url(f"manifests/{name}"), Accept=_ACCEPT)
            if answer.status != 200:
                raise self._failed(answer, f"{self.name}{'@' if ':' in name else ':'}{name}")
            return answer

        raw, answer = self._whole(ask, MANIFEST_LIMIT, f"manifest {name}")
        digest = Digest.of(raw)
        promised = name if ":" in name else answer.header("Docker-Content-Digest")
        if promised is not None and promised.startswith("sha256:") and promised != digest:
            raise DigestMismatch(f"manifest {name}: expected {promised}, got {digest}", expected=promised, actual=digest)
        return RawManifest(media_type_of(raw, answer.header("Content-Type")), raw, digest)

    def _whole(self, ask: Callable[[], Answer], limit: int, what: str) -> tuple[bytes, Answer]:
        """A small body; a connection that is cut in its middle is another try. Broken, RegistryError."""
        wire = self.connection.wire
        for attempt in range(1, wire.patience.tries + 1):
            answer = ask()
            try:
                raw = answer.read_all(limit, what)
            except Broken:
                answer.close()
                if attempt == wire.patience.tries:
                    raise
                wire.rest(attempt)
                continue
            answer.done()
            return raw, answer
        raise AssertionError("no attempt was made")

    def manifest_digest(self, name: str) -> str | None:
        """The digest behind a tag; None when there is none, or the server does not say."""
        answer = self._ask("HEAD", self._url(f"manifests/{name}"), Accept=_ACCEPT)
        answer.done()
        return answer.header("Docker-Content-Digest") if answer.status == 200 else None

    def put_manifest(self, name: str, manifest: RawManifest) -> None:
        """Store a manifest under a tag or its digest; everything it names must be there. RegistryError."""
        answer = self._ask("PUT", self._url(f"manifests/{name}"), body=manifest.raw, Content_Type=manifest.media_type)
        if answer.status not in (200, 201, 202):
            raise self._failed(answer, f"{self.name}:{name}: manifest")
        answer.done()
        said = answer.header("Docker-Content-Digest")
        if said is not None and said.startswith("sha256:") and said != manifest.digest:
            raise DigestMismatch(f"manifest {name}: sent {manifest.digest}, stored {said}", expected=manifest.digest, actual=said)

    def tags(self) -> list[str]:
        """Every tag. NotInRegistry."""
        return [tag for page in self._pages(self._url("tags/list"), self.name) for tag in _TAGS.decode(page).tags or []]

    def repositories(self) -> list[str]:
        """Every repository of the server, where it tells. NotInRegistry, Unauthorized."""
        whole = replace(self, name="catalog", actions="*")
        pages = whole._pages(self.connection.url("_catalog"), self.host, ("registry:catalog:*",))
        return [name for page in pages for name in _CATALOG.decode(page).repositories or []]

    def _pages(self, url: str, what: str, scopes: tuple[str, ...] | None = None) -> Iterator[bytes]:
        own = urllib.parse.urlsplit(url)[:2]
        for _ in range(_MOST_PAGES):
            answer = self.connection.ask(Request("GET", url), scopes or self._scopes())
            if answer.status != 200:
                raise self._failed(answer, what)
            yield answer.read_all(_LIST_LIMIT, f"list of {what}")
            answer.done()
            following = _next_page(answer.header("Link"))
            if following is None:
                return
            url = urllib.parse.urljoin(url, following)
            if urllib.parse.urlsplit(url)[:2] != own:
                raise RegistryError(f"{self.host}: its list goes on at {shown(url)}, which is not asked")
        raise RegistryError(f"{self.host}: its list does not end")

    # blobs

    def has_blob(self, digest: str) -> bool:
        """Whether the blob is there."""
        answer = self._ask("HEAD", self._url(f"blobs/{digest}"))
        answer.done()
        if answer.status not in (200, 404):
            raise self._failed(answer, f"blob {digest[:19]}…")
        return answer.status == 200

    def open_blob(self, descriptor: Descriptor, start: int = 0) -> Answer:
        """A blob's bytes from `start` on, unverified: 206, or 200 from the beginning. NotInRegistry, RegistryError, Broken."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = Request("GET", self._url(f"blobs/{descriptor.digest}"), headers)
        answer = self.connection.ask(request, self._scopes())
        if answer.status == 200 or (answer.status == 206 and _begins_at(answer, start)):
            return answer
        raise self._failed(answer, f"{self.name}: blob {descriptor.digest[:19]}…")

    def read_blob(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, verified. DigestMismatch, RegistryError."""
        what = f"blob {descriptor.digest[:19]}…"
        if descriptor.size > limit:
            raise InvalidImage(f"{what}: {descriptor.size} bytes, which no document has")
        raw, _ = self._whole(lambda: self.open_blob(descriptor), limit, what)
        if (digest := Digest.of(raw)) != descriptor.digest or len(raw) != descriptor.size:
            message = f"{what}: expected {descriptor.size} bytes of {descriptor.digest}, got {len(raw)} of {digest}"
            raise DigestMismatch(message, expected=descriptor.digest, actual=digest)
        return raw

    # uploads

    def begin_upload(self, mount: str | None = None, origin: str | None = None) -> str | None:
        """Where to send a blob; None when it was mounted from the repository `origin` and nothing need be sent."""
        query = urllib.parse.urlencode({"mount": mount, "from": origin}) if mount and origin else ""
        scopes = self._scopes(*([f"repository:{origin}:pull"] if query else []))
        url = self._url("blobs/uploads/") + (f"?{query}" if query else "")
        answer = self.connection.ask(Request("POST", url, {"Content-Length": "0"}, b""), scopes)
        if answer.status == 201 and query:
            answer.done()
            return None
        if answer.status != 202:
            raise self._failed(answer, f"{self.name}: upload")
        answer.done()
        return self._location(answer)

    def send_piece(self, location: str, body: Body, start: int, size: int) -> tuple[str, int]:
        """Add bytes to an upload; where to send the next, and how many bytes the server has now. Broken, RegistryError."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size), "Content-Range": f"{start}-{start + size - 1}"}
        answer = self.connection.ask(Request("PATCH", location, headers, body, retried=False), self._scopes())
        if answer.status != 202:
            raise self._failed(answer, f"{self.name}: upload")
        answer.done()
        has = _received(answer)
        return self._location(answer), start + size if has is None else has

    def upload_state(self, location: str) -> tuple[str, int] | None:
        """Where an upload goes on, and how many bytes the server has of it; None when it has forgotten it."""
        answer = self._ask("GET", location)
        answer.done()
        if answer.status not in (202, 204):
            return None
        place = self._location(answer) if answer.header("Location") else location
        return place, _received(answer) or 0

    def end_upload(self, location: str, digest: str, body: Body = b"", size: int = 0) -> None:
        """The last (or only) bytes of an upload, and the digest of all. DigestMismatch, Broken, RegistryError."""
        joint = "&" if urllib.parse.urlsplit(location).query else "?"
        url = f"{location}{joint}{urllib.parse.urlencode({'digest': digest})}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        answer = self.connection.ask(Request("PUT", url, headers, body, retried=False), self._scopes())
        if answer.status != 201:
            raise self._failed(answer, f"{self.name}: upload of {digest[:19]}…")
        answer.done()

    def _location(self, answer: Answer) -> str:
        location = answer.header("Location")
        if not location:
            raise RegistryError(f"{self.host}: an upload without a place to send it to")
        url = urllib.parse.urljoin(answer.url, location)
        here, there = urllib.parse.urlsplit(answer.url), urllib.parse.urlsplit(url)
        if here.scheme == "https" and there.scheme == "http":
            if here.hostname == there.hostname:  # a registry behind a proxy that does not know of its TLS
                return urllib.parse.urlunsplit(there._replace(scheme="https", netloc=here.netloc))
            raise RegistryError(f"{self.host}: wants an upload sent to {shown(url)}, without TLS")
        return url

    def _failed(self, answer: Answer, what: str) -> RegistryError:
        """An answer that is not what was asked for, as the error it is."""
        detail = _problem_text(answer)
        if answer.status == 404:
            return NotInRegistry(f"{what}: not in {self.host}{f' ({detail})' if detail else ''}")
        if answer.status == 416 or answer.status >= 500:
            return Broken(f"{what}: {self.host} says {answer.status}{f' ({detail})' if detail else ''}")
        return RegistryError(f"{what}: {self.host} says {answer.status}{f' ({detail})' if detail else ''}")


def _problem_text(answer: Answer) -> str:
    """What the registry says is wrong; `` when it does not say. Ends the answer."""
    try:
        raw = answer.read_all(_ERRORS_LIMIT, "error")
        problems = _PROBLEMS.decode(raw).errors
    except (RegistryError, msgspec.DecodeError):
        return ""
    finally:
        answer.close()
    return "; ".join(" ".join((problem.message or problem.code.lower()).split())[:200] for problem in problems[:3])


def media_type_of(raw: bytes, header: str | None) -> str:
    """What a document is. InvalidImage when it is no manifest, or could be read as two kinds."""
    try:
        shape = _SHAPE.decode(raw)
    except msgspec.DecodeError as err:
        raise InvalidImage(f"manifest: {err}") from err
    if shape.schema_version == 1:
        raise InvalidImage("manifest: of docker's old schema 1, which nobody should use", hint="push the image again with a newer engine")
    kind = shape.media_type or (header or "").partition(";")[0].strip()
    if kind not in (*MANIFESTS, *INDEXES):
        kind = INDEX_TYPE if _is_given(shape.manifests) else MANIFEST_TYPE if _is_given(shape.layers) else kind
    is_index = kind in INDEXES
    if kind not in (*MANIFESTS, *INDEXES):
        raise InvalidImage(f"manifest: of the unknown kind {kind!r}")
    if _is_given(shape.manifests) != is_index or (is_index and (_is_given(shape.layers) or _is_given(shape.config))):
        raise InvalidImage(f"manifest: says it is {kind} and has the fields of another kind")
    return kind


def _is_given(field: msgspec.Raw) -> bool:
    return bytes(field) not in (b"", b"null")


def _received(answer: Answer) -> int | None:
    """How many bytes an upload has: its Range is `0-LAST`."""
    first, _, last = (answer.header("Range") or "").removeprefix("bytes=").partition("-")
    if first != "0" or not last.isdigit():
        return None
    return int(last) + 1 if int(last) else 0


def _begins_at(answer: Answer, start: int) -> bool:
    text = answer.header("Content-Range") or ""
    return text.removeprefix("bytes ").partition("-")[0].strip() == str(start)


def _next_page(link: str | None) -> str | None:
    """RFC 8288, as far as registries use it: `</v2/…?last=x>; rel="next"`."""
    if link is None or 'rel="next"' not in link.replace(" ", "").replace("rel=next", 'rel="next"'):
        return None
    target = link.partition("<")[2].partition(">")[0]
    return target or None
