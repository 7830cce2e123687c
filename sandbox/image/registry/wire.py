"""HTTP as registries need it: TLS, proxies, retries with back-off, redirects that drop credentials. No credentials of its own.

urllib3 does one request at a time here: what is tried again, and what goes to another host, is decided below.
"""

from __future__ import annotations

import ipaddress
import os
import random
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from sandbox.errors import RateLimited, RegistryError
from sandbox.guarded import Guarded
from sandbox.image.proxies import proxy_for

if TYPE_CHECKING:
    import urllib3

Body = bytes | Callable[[], IO[bytes] | Iterable[bytes]]
"""What is sent; a function gives it anew for every attempt."""

CHUNK = 1 << 20
_AGENT = "jupyter-sandbox"
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
_LONGEST_PAUSE = 60.0
_CERTIFICATES = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Patience(msgspec.Struct, frozen=True):
    """Seconds until a connection or the next bytes are given up; how often something is tried, and the first pause between."""

    connect: float = 20.0
    read: float = 60.0
    tries: int = 5
    pause: float = 0.25


class Request(Guarded, frozen=True):
    """One request. `retried` False: whoever asks decides himself what a broken connection means (an upload). Its body and its
    Authorization are not part of its representation."""

    hidden = ("headers", "body")

    method: str
    url: str
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    body: Body | None = None
    retried: bool = True

    def with_headers(self, **headers: str) -> Request:
        """The same with these as well."""
        return replace(self, headers={**self.headers, **headers})


class Answer:
    """What came back, its body unread."""

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str) -> None:
        self._response = response
        self.url = url
        self.status = response.status

    def header(self, name: str) -> str | None:
        """A header's value."""
        value: str | None = self._response.headers.get(name)
        return value

    def headers(self, name: str) -> list[str]:
        """Every value of a header that may stand there several times."""
        found: list[str] = self._response.headers.getlist(name)
        return found

    def read(self, size: int) -> bytes:
        """Up to so many bytes as they are; b"" at the end. RegistryError when the connection breaks (`is_broken`)."""
        import urllib3

        try:
            return self._response.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise broken(self.url, err) from err

    def read_all(self, limit: int, what: str) -> bytes:
        """The whole body, which must not be larger than `limit`."""
        data = bytearray()
        while piece := self.read(min(CHUNK, limit + 1 - len(data))):
            data += piece
            if len(data) > limit:
                self.close()
                raise RegistryError(f"{what}: larger than {limit >> 20} MiB, which no registry may send")
        return bytes(data)

    def done(self) -> None:
        """The connection may be used again; a short rest of the body is read for that."""
        try:
            if self.read(CHUNK):
                self.close()
            else:
                self._response.release_conn()
        except RegistryError:
            self.close()

    def close(self) -> None:
        """Give the connection up."""
        self._response.close()


class Broken(RegistryError):
    """The connection was cut, refused or silent for too long: another try may succeed."""


class Wire:
    """Connections to registries of one command. `environ`: proxies and CAs. Thread-safe. `stop` ends every pause."""

    def __init__(self, environ: Mapping[str, str], patience: Patience = Patience(), stop: threading.Event | None = None) -> None:
        self._environ = environ
        self.patience = patience
        self.stop = stop or threading.Event()
        self._pools: dict[tuple[str, bool, str | None], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()

    def send(self, request: Request, *, verify: bool = True) -> Answer:
        """The last answer after tries and redirects, whatever its status. Broken, RateLimited, RegistryError."""
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._tried(request, verify)
            target = answer.header("Location")
            if answer.status not in _REDIRECTS or target is None or request.method not in ("GET", "HEAD"):
                return answer
            answer.done()
            request = _redirected(request, urllib.parse.urljoin(request.url, target))
        raise RegistryError(f"{shown(request.url)}: more than {_MOST_REDIRECTS} redirects")

    def _tried(self, request: Request, verify: bool) -> Answer:
        for attempt in range(1, self.patience.tries + 1):
            last = attempt == self.patience.tries or not request.retried
            try:
                answer = self._once(request, verify)
            except Broken:
                if last:
                    raise
                self.rest(attempt)
                continue
            if answer.status not in _RETRIED:
                return answer
            wanted = _retry_after(answer)
            if answer.status == 429 and (last or (wanted or 0) > _LONGEST_PAUSE):
                answer.close()
                raise _limited(request.url, answer, wanted)
            if last or (wanted or 0) > _LONGEST_PAUSE:
                return answer
            answer.close()
            self.rest(attempt, wanted)
        raise AssertionError("no attempt was made")

    def rest(self, attempt: int, seconds: float | None = None) -> None:
        """The pause after a failed attempt: as long as the server asked for, else twice the one before, with some chance in it."""
        pause = seconds if seconds is not None else self.patience.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        if self.stop.wait(pause):
            raise RegistryError("transfer: stopped")

    def _once(self, request: Request, verify: bool) -> Answer:
        import urllib3

        headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **request.headers}
        body = request.body() if callable(request.body) else request.body
        try:
            response = self._pool(request.url, verify).request(
                request.method, request.url, headers=headers, body=body, preload_content=False, redirect=False, retries=False
            )
        except (urllib3.exceptions.HTTPError, OSError) as err:
            raise broken(request.url, err) from err
        return Answer(response, request.url)

    def _pool(self, url: str, verify: bool) -> urllib3.PoolManager:
        parts = urllib.parse.urlsplit(url)
        key = (parts.netloc, verify, None if is_local(parts.hostname or "") else proxy_for(url, self._environ))
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._new_pool(parts, verify, key[2])
            return self._pools[key]

    def _new_pool(self, parts: urllib.parse.SplitResult, verify: bool, proxy: str | None) -> urllib3.PoolManager:
        import urllib3

        timeout = urllib3.Timeout(connect=self.patience.connect, read=self.patience.read)
        context = self._context(parts.netloc, verify) if parts.scheme == "https" else None
        if proxy is None:
            return urllib3.PoolManager(timeout=timeout, maxsize=16, ssl_context=context, blocksize=1 << 18)
        user, _, _ = urllib.parse.urlsplit(proxy).netloc.rpartition("@")
        headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(user)) if user else None
        return urllib3.ProxyManager(proxy, timeout=timeout, maxsize=16, ssl_context=context, proxy_headers=headers)

    def _context(self, host: str, verify: bool) -> ssl.SSLContext:
        """SSL_CERT_FILE and SSL_CERT_DIR are OpenSSL's own; the others add to them."""
        context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        own = os.path.realpath(ssl.get_default_verify_paths().cafile or "")
        for bundle in {os.path.realpath(named) for name in _BUNDLES if verify and (named := self._environ.get(name))} - {own}:
            if Path(bundle).is_file():  # reading one takes 0.05 s
                context.load_verify_locations(bundle)
        for directory in (Path(place, host) for place in (*_CERTIFICATES, *_own_certificates(self._environ))):
            for authority in sorted(directory.glob("*.crt")):
                context.load_verify_locations(authority)
            for certificate in sorted(directory.glob("*.cert")):
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context


def _own_certificates(environ: Mapping[str, str]) -> list[str]:
    """containers-certs.d(5), a user's own."""
    config = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if (home := environ.get("HOME")) else None)
    return [f"{config}/containers/certs.d"] if config else []


def _redirected(request: Request, target: str) -> Request:
    """The request at another place; another host gets no credentials, and TLS is not given up. RegistryError."""
    here, there = urllib.parse.urlsplit(request.url), urllib.parse.urlsplit(target)
    if there.scheme not in ("http", "https") or not there.hostname:
        raise RegistryError(f"{shown(request.url)}: redirected to {shown(target)}, which is no web address")
    if here.scheme == "https" and there.scheme == "http":
        raise RegistryError(f"{shown(request.url)}: redirected to {shown(target)}, away from TLS")
    if is_local(there.hostname) and not is_local(here.hostname or ""):
        raise RegistryError(f"{shown(request.url)}: redirected to {shown(target)}, an address of this machine")
    same = (here.scheme, here.hostname, here.port) == (there.scheme, there.hostname, there.port)
    kept = request.headers if same else {name: value for name, value in request.headers.items() if name != "Authorization"}
    return replace(request, url=target, headers=kept)


def is_local(host: str) -> bool:
    """Whether this is an address of this machine or its link: what no registry elsewhere may send us to."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified)


def _retry_after(answer: Answer) -> float | None:
    """RFC 9110 section 10.2.3: seconds or a date."""
    text = answer.header("Retry-After")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        from datetime import UTC, datetime

        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _limited(url: str, answer: Answer, wanted: float | None) -> RateLimited:
    left = answer.header("RateLimit-Remaining")
    more = f" ({left.partition(';')[0]} requests left)" if left else ""
    hint = f"try again in {wanted:.0f} s" if wanted else "log in, or try again later"
    return RateLimited(f"{host_of(url)}: too many requests{more}", retry_after=wanted or 0.0, hint=hint)


def host_of(url: str) -> str:
    """Host and port of a URL, without a user."""
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def shown(url: str) -> str:
    """A URL as it may be told: without user and query, which hold secrets of storage hosts."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def broken(url: str, err: BaseException) -> RegistryError:
    """urllib3's and the system's errors as one line; Broken when another try may succeed, else RegistryError."""
    import urllib3

    known = urllib3.exceptions
    reason = getattr(err, "reason", None)
    cause = reason if isinstance(reason, BaseException) else err
    host = host_of(url)
    if isinstance(cause, known.SSLError | ssl.SSLError):
        if "CERTIFICATE_VERIFY_FAILED" in str(cause) or isinstance(cause, ssl.SSLCertVerificationError):
            hint = f"add its CA to {_CERTIFICATES[0]}/{host}/ca.crt or SSL_CERT_FILE, or use --tls-verify=false"
            return RegistryError(f"{host}: its certificate cannot be trusted ({_certificate_reason(cause)})", hint=hint)
        return Broken(f"{host}: no TLS connection ({_one_line(cause)})")
    if isinstance(cause, known.NameResolutionError):
        return Broken(f"{host}: host not known", hint="is this machine online? proxies come from http_proxy and https_proxy")
    if isinstance(cause, known.ReadTimeoutError):
        return Broken(f"{host}: no answer for too long")
    if isinstance(cause, known.ConnectTimeoutError | known.NewConnectionError):
        return Broken(f"{host}: no connection", hint="is the name right, and the registry running?")
    if isinstance(cause, known.LocationValueError | known.URLSchemeUnknown):
        return RegistryError(f"{shown(url)}: not a web address")
    return Broken(f"{host}: the connection broke ({_one_line(cause)})")


def _certificate_reason(cause: BaseException) -> str:
    text = str(cause)
    return text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or _one_line(cause)


def _one_line(err: BaseException) -> str:
    return (str(err).splitlines() or [""])[0][:200] or type(err).__name__
