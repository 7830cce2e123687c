"""A URL fetched for an ADD: kept below the engine's directory (`sources/http/`), asked for again with its ETag or time.

Contents are files named by their digest; beside them one small JSON file a URL says which content it had and what the
server said of it. Both are complete whenever they exist.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import secrets
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandbox.build.urls import CHECKSUM
from sandbox.errors import BuildError, DigestMismatch
from sandbox.guarded import Guarded
from sandbox.image.proxies import proxy_for

if TYPE_CHECKING:
    import urllib3

_CHUNK = 1 << 20
_LARGEST = 64 << 30
_CONNECT, _READ = 20.0, 120.0


class _Known(msgspec.Struct, forbid_unknown_fields=False):
    """What is known of a URL."""

    url: str
    digest: str
    mtime: int | None = None
    etag: str | None = None
    modified: str | None = None


_DECODER = msgspec.json.Decoder(_Known)


class Download(msgspec.Struct, frozen=True):
    """A file fetched: `path` holds its content, `digest` is `sha256:…`, `mtime` the server's Last-Modified (None: not said)."""

    path: Path
    digest: str
    mtime: int | None


class Downloads(Guarded, frozen=True):
    """The files kept in `root`. `environ` gives the proxies (http_proxy, https_proxy, no_proxy), `authorization` the value of the
    header of that name, which no other host is sent."""

    hidden = ("authorization",)

    root: Path
    environ: Mapping[str, str]
    authorization: str | None = None

    def fetch(self, url: str, checksum: str | None = None) -> Download:
        """The content of a URL as it is now; with its checksum what is kept needs no asking. BuildError, DigestMismatch."""
        known = self._known(url)
        if known is not None and checksum == known.digest:
            return self._kept(known)
        found = self._ask(url, known)
        if checksum is not None and found.digest != checksum:
            message = f"{_shown(url)}: expected {checksum}, got {found.digest}"
            raise DigestMismatch(message, expected=checksum, actual=found.digest, hint="the file has changed, or the checksum is another's")
        return found

    def _ask(self, url: str, known: _Known | None) -> Download:
        import urllib3  # 60 ms, wanted only here

        headers = {"Accept-Encoding": "identity", "User-Agent": "sandbox"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization
        if known is not None and (known.etag or known.modified):
            headers |= {"If-None-Match": known.etag} if known.etag else {"If-Modified-Since": known.modified or ""}
        with self._pool(url) as pool:
            try:
                answer = pool.request("GET", url, headers=headers, preload_content=False, redirect=True)
                try:
                    if answer.status == 304 and known is not None:
                        return self._kept(known)
                    if answer.status != 200:
                        raise BuildError(f"{_shown(url)}: the server says {answer.status} {answer.reason or ''}".rstrip())
                    return self._keep(url, answer)
                finally:
                    answer.close()
            except urllib3.exceptions.HTTPError as err:
                raise _plain(url, err) from err

    def _pool(self, url: str) -> urllib3.PoolManager:
        import urllib3

        timeout = urllib3.Timeout(connect=_CONNECT, read=_READ)
        retries = urllib3.Retry(total=10, connect=1, read=1, status=0, other=0, redirect=10, backoff_factor=0.2)
        proxy = proxy_for(url, self.environ)
        if proxy:
            return urllib3.ProxyManager(proxy, timeout=timeout, retries=retries)
        return urllib3.PoolManager(timeout=timeout, retries=retries)

    def _keep(self, url: str, answer: urllib3.BaseHTTPResponse) -> Download:
        self.root.mkdir(parents=True, exist_ok=True)
        new = self.root / f"new-{secrets.token_hex(8)}"
        try:
            digest = _save(url, answer, new)
            modified = answer.headers.get("Last-Modified")
            known = _Known(url, digest, _seconds(modified), answer.headers.get("ETag"), modified)
            os.replace(new, self._content(digest))
        finally:
            new.unlink(missing_ok=True)
        note = self._note(url)
        beside = note.with_suffix(f".{secrets.token_hex(8)}")
        beside.write_bytes(msgspec.json.encode(known))
        os.replace(beside, note)
        return self._kept(known)

    def _known(self, url: str) -> _Known | None:
        """What was kept of a URL, if it is still there whole."""
        try:
            known = _DECODER.decode(self._note(url).read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return known if known.url == url and CHECKSUM.fullmatch(known.digest) and self._content(known.digest).is_file() else None

    def _kept(self, known: _Known) -> Download:
        return Download(self._content(known.digest), known.digest, known.mtime)

    def _content(self, digest: str) -> Path:
        return self.root / digest.removeprefix("sha256:")

    def _note(self, url: str) -> Path:
        return self.root / f"{hashlib.sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()}.json"


def _save(url: str, answer: urllib3.BaseHTTPResponse, path: Path) -> str:
    total, size = hashlib.sha256(), 0
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as out:
        while data := answer.read(_CHUNK):
            if (size := size + len(data)) > _LARGEST:
                raise BuildError(f"{_shown(url)}: larger than {_LARGEST >> 30} GiB")
            total.update(data)
            out.write(data)
    return f"sha256:{total.hexdigest()}"


def _seconds(modified: str | None) -> int | None:
    try:
        return int(email.utils.parsedate_to_datetime(modified).timestamp()) if modified else None
    except (ValueError, OverflowError):
        return None


def _plain(url: str, err: Exception) -> BuildError:
    """urllib3's error as one line a person can act on."""
    import urllib3

    host = urllib.parse.urlsplit(url).hostname or url
    reason = getattr(err, "reason", None) or err
    offline = "is this machine online? a proxy comes from http_proxy and https_proxy"
    if isinstance(reason, urllib3.exceptions.NameResolutionError):
        return BuildError(f"{_shown(url)}: host {host} is not known", hint=offline)
    if isinstance(reason, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError)):
        return BuildError(f"{_shown(url)}: no connection to {host}", hint=offline)
    if isinstance(reason, urllib3.exceptions.LocationValueError):
        return BuildError(f"{_shown(url)}: not a URL")
    text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
    return BuildError(f"{_shown(url)}: {text}")


def _shown(url: str) -> str:
    """The URL without a user's name and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
