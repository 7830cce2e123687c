"""Proving who we are: WWW-Authenticate read (RFC 9110 section 11), docker's token authentication, basic.

https://distribution.github.io/distribution/spec/auth/token/. A token is kept by the endpoint that asked for it and the scopes
it is for, and is sent nowhere else; the name and password go to the realm the registry names, and only over TLS unless the
registry itself is spoken to without.
"""

from __future__ import annotations

import base64
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence

import msgspec

from sandbox.errors import RegistryError, Unauthorized
from sandbox.guarded import Guarded
from sandbox.image.registry.credentials import Credential
from sandbox.image.registry.wire import Answer, Request, Wire, is_local, shown

_SHORTEST = 60.0
"""Seconds a token is valid at least, says the specification; also when nothing is said."""
_MARGIN = 10.0
_LARGEST = 1 << 20


class Challenge(msgspec.Struct, frozen=True):
    """One way to authenticate that a server offers: its scheme in lower case, its parameters by name in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """The challenges of all WWW-Authenticate headers; what cannot be read is left out."""
    return [challenge for value in values for challenge in _challenges(value)]


def _challenges(value: str) -> Iterator[Challenge]:
    scheme, parameters = "", dict[str, str]()
    for word in _words(value):
        name, equals, text = word.partition("=")
        head, _, key = name.rpartition(" ")
        if head or not equals:  # `Bearer realm` begins a new one, so does `Basic` alone
            if scheme:
                yield Challenge(scheme, parameters)
            scheme, parameters = (head or name).strip().lower(), {}
        if equals and scheme:
            parameters[key.strip().lower()] = _unquoted(text.strip())
    if scheme:
        yield Challenge(scheme, parameters)


def _words(value: str) -> Iterator[str]:
    """The parts between the commas that are in no quotes."""
    word, quoted, escaped = "", False, False
    for char in value:
        if char == "," and not quoted:
            yield word.strip()
            word = ""
            continue
        quoted ^= char == '"' and not escaped
        escaped = quoted and char == "\\" and not escaped
        word += char
    if word.strip():
        yield word.strip()


def _unquoted(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")


class _TokenReply(msgspec.Struct):
    """What a token server answers; `access_token` is OAuth's word for the same."""

    token: str = ""
    access_token: str = ""
    expires_in: float | None = None


_REPLY = msgspec.json.Decoder(_TokenReply)


class _Token(Guarded, frozen=True):
    hidden = ("text",)

    text: str
    expires: float = 0.0


class Authorizer(msgspec.Struct):
    """Proves who we are to one registry. `credential`: asked at most once. Thread-safe: threads that need the same token share one
    request."""

    wire: Wire
    url: str
    verify: bool
    credential: Callable[[], Credential | None]
    clock: Callable[[], float] = time.monotonic
    _tokens: dict[tuple[str, ...], _Token] = msgspec.field(default_factory=dict)
    _basic: str | None = None
    _bearer: Challenge | None = None
    _known: list[Credential | None] = msgspec.field(default_factory=list)
    _lock: threading.RLock = msgspec.field(default_factory=threading.RLock)

    def __repr__(self) -> str:
        """Without what it knows, which is secret."""
        return f"Authorizer({self.url!r})"

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What Authorization must hold for these scopes, as far as the registry has said it wants one. Unauthorized."""
        with self._lock:
            if self._basic or self._bearer is None:
                return self._basic
            token = self._tokens.get(scopes)
            if token is None or token.expires < self.clock():
                token = self._tokens[scopes] = self._fetch(self._bearer, scopes)
            return f"Bearer {token.text}"

    def learn(self, answer: Answer) -> None:
        """After the first 401: how to prove ourselves from now on. No token is asked for before it is known what for. RegistryError."""
        offered = self._offered(answer)
        with self._lock:
            if "bearer" in offered:
                self._bearer = offered["bearer"]
            else:
                self._with_password(None)

    def challenged(self, answer: Answer, scopes: tuple[str, ...], used: str | None) -> str | None:
        """After a 401: what to send now; None when there is nothing better than what was `used`. Unauthorized, RegistryError."""
        offered = self._offered(answer)
        with self._lock:
            return self._renewed(offered["bearer"], scopes, used) if "bearer" in offered else self._with_password(used)

    def _offered(self, answer: Answer) -> dict[str, Challenge]:
        offered = {challenge.scheme: challenge for challenge in parse_challenges(answer.headers("WWW-Authenticate"))}
        if not offered.keys() & {"bearer", "basic"}:
            names = ", ".join(offered) or "none"
            raise RegistryError(f"{shown(self.url)}: wants a way to log in that is not known here ({names})")
        return offered

    def _renewed(self, bearer: Challenge, scopes: tuple[str, ...], used: str | None) -> str | None:
        kept = self._tokens.get(scopes)
        if kept is not None and used != f"Bearer {kept.text}":
            return f"Bearer {kept.text}"  # another thread has it already
        was_fresh = self._bearer is not None and kept is not None and kept.expires >= self.clock() and used is not None
        asked = bearer.parameters.get("scope")
        self._bearer = bearer
        token = self._fetch(bearer, scopes or ((asked,) if asked else ()))
        self._tokens[scopes] = token
        header = f"Bearer {token.text}"
        return None if was_fresh and header == used else header

    def _with_password(self, used: str | None) -> str | None:
        credential = self.identity()
        if credential is None or used is not None:
            return None
        self._basic = basic(credential)
        return self._basic

    def identity(self) -> Credential | None:
        """Who we are; asked for once."""
        if not self._known:
            self._known.append(self.credential())
        return self._known[0]

    def _fetch(self, bearer: Challenge, scopes: tuple[str, ...]) -> _Token:
        realm = bearer.parameters.get("realm", "")
        self._check_realm(realm)
        credential = self.identity()
        request = _token_request(realm, bearer.parameters.get("service"), scopes, credential)
        answer = self.wire.send(request, verify=self.verify)
        if answer.status in (400, 401, 403):
            answer.done()
            raise refused(self.url, credential)
        if answer.status != 200:
            answer.close()
            raise RegistryError(f"{shown(realm)}: the token server says {answer.status}")
        return self._token(answer.read_all(_LARGEST, f"token of {shown(realm)}"), realm)

    def _token(self, raw: bytes, realm: str) -> _Token:
        try:
            reply = _REPLY.decode(raw)
        except msgspec.DecodeError:
            raise RegistryError(f"{shown(realm)}: the token server's answer cannot be read") from None  # its text may hold the token
        text = reply.token or reply.access_token
        if not text or any(char.isspace() or not char.isprintable() for char in text):
            raise RegistryError(f"{shown(realm)}: the token server gave no token")
        lasts = max(reply.expires_in or _SHORTEST, 1.0)
        return _Token(text, self.clock() + (lasts - _MARGIN if lasts > 2 * _MARGIN else lasts))

    def _check_realm(self, realm: str) -> None:
        parts, own = urllib.parse.urlsplit(realm), urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RegistryError(f"{shown(self.url)}: names no token server that could be asked ({shown(realm)!r})")
        if parts.scheme == "http" and own.scheme == "https":
            raise RegistryError(f"{shown(self.url)}: names a token server without TLS ({shown(realm)}): no password is sent there")
        if is_local(parts.hostname) and not is_local(own.hostname or ""):
            raise RegistryError(f"{shown(self.url)}: names a token server of this machine ({shown(realm)})")


def _token_request(realm: str, service: str | None, scopes: Sequence[str], credential: Credential | None) -> Request:
    fields = [*([("service", service)] if service else []), *(("scope", scope) for scope in scopes)]
    if credential is not None and credential.is_token:
        form = [("grant_type", "refresh_token"), ("refresh_token", credential.secret), ("client_id", "jupyter-sandbox")]
        form += [*([("service", service)] if service else []), ("scope", " ".join(scopes))]
        body = urllib.parse.urlencode(form).encode()
        return Request("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, body)
    if credential is not None:
        fields.insert(0, ("account", credential.user))
    joint = "&" if urllib.parse.urlsplit(realm).query else "?"
    url = f"{realm}{joint}{urllib.parse.urlencode(fields)}" if fields else realm
    return Request("GET", url, {"Authorization": basic(credential)} if credential is not None else {})


def basic(credential: Credential) -> str:
    """RFC 7617."""
    return "Basic " + base64.b64encode(f"{credential.user}:{credential.secret}".encode()).decode()


def refused(url: str, credential: Credential | None) -> Unauthorized:
    """The error of a registry that does not let us in."""
    host = urllib.parse.urlsplit(url).netloc
    if credential is None:
        return Unauthorized(f"{host}: access refused without a login", hint=f"sandbox login {host}")
    return Unauthorized(f"{host}: access refused to {credential.user or 'this token'}", hint=f"is the password right? sandbox login {host}")
