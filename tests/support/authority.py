"""A certificate authority of a test's own, and a token server that signs with it (distribution's token authentication), by openssl(1)."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SERVICE = "tests"
_SCOPE = re.compile(r"(repository):([a-z0-9/._-]+):([a-z,*]+)|(registry):(catalog):(\*)")


def _openssl(*words: str | Path, data: bytes | None = None) -> bytes:
    done = subprocess.run(["openssl", *words], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@dataclass(frozen=True)
class Authority:
    """A CA whose certificate is `certificate`."""

    directory: Path

    @property
    def certificate(self) -> Path:
        """What clients must trust."""
        return self.directory / "ca.crt"

    def issue(self, name: str) -> tuple[Path, Path]:
        """A server's certificate and key; it is also for 127.0.0.1."""
        certificate, key, request = (self.directory / f"{name}.{end}" for end in ("crt", "key", "csr"))
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name},IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        _openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", request,
                 "-subj", f"/CN={name}")  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.directory / "ca.key", "-CAcreateserial",
                 "-days", "2", "-extfile", extensions, "-out", certificate)  # fmt: skip
        return certificate, key


def authority(directory: Path) -> Authority:
    """A new one."""
    directory.mkdir(parents=True)
    made = Authority(directory)
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", directory / "ca.key",
             "-out", made.certificate, "-days", "2", "-subj", "/CN=authority of a test",
             "-addext", "keyUsage=critical,keyCertSign,digitalSignature")  # fmt: skip
    return made


@dataclass
class TokenServer:
    """Gives tokens at `realm`: everything to USER:PASSWORD, and to anybody pulls of `public/…`. Strict: what it does not understand it
    refuses. `stale`: so many tokens more will be ones that have expired. `asked`: (user or "", scopes) of every request."""

    realm: str
    user: str
    password: str
    key: Path
    certificate: Path
    stale: int = 0
    asked: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def answer(self, query: str, authorization: str | None) -> tuple[int, dict[str, object]]:
        """Status and JSON for one request."""
        fields = urllib.parse.parse_qs(query, strict_parsing=True)
        if set(fields) - {"service", "scope", "account"} or fields.get("service") != [SERVICE]:
            return 400, {"details": f"not understood: {query}"}
        scopes = tuple(fields.get("scope", []))
        if not all(_SCOPE.fullmatch(scope) for scope in scopes):
            return 400, {"details": f"no scopes: {scopes}"}
        user = ""
        if authorization is not None:
            given = base64.b64decode(authorization.removeprefix("Basic ")).decode()
            if given != f"{self.user}:{self.password}" or fields.get("account") != [self.user]:
                return 401, {"details": "who is that?"}
            user = self.user
        self.asked.append((user, scopes))
        return 200, {"token": self._token(user, scopes), "expires_in": 300}

    def _token(self, user: str, scopes: tuple[str, ...]) -> str:
        now = int(time.time())
        begin = now - 10
        if self.stale:
            self.stale, begin = self.stale - 1, now - 1000
        claims = {
            "iss": SERVICE, "aud": SERVICE, "sub": user, "jti": str(len(self.asked)), "iat": begin, "nbf": begin, "exp": begin + 500,
            "access": [self._grant(user, scope) for scope in scopes],
        }  # fmt: skip
        der = base64.b64encode(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).decode()
        head = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        return f"{signed}.{_base64url(_openssl('dgst', '-sha256', '-sign', self.key, data=signed.encode()))}"

    def _grant(self, user: str, scope: str) -> dict[str, object]:
        kind, name, actions = scope.split(":")
        anybodys = ["pull"] if name.startswith("public/") else []
        return {"type": kind, "name": name, "actions": [each for each in actions.split(",") if user or each in anybodys]}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@contextmanager
def token_server(directory: Path, ca: Authority, *, user: str, password: str) -> Iterator[TokenServer]:
    """A token server with TLS on localhost until the block ends; its key is not the CA's."""
    key, certificate = directory / "token.key", directory / "token.crt"
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=tokens")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            status, reply = made.answer(query, self.headers.get("Authorization")) if path == "/token" else (404, {})
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Not on the terminal of the tests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ca.issue("localhost"))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    made = TokenServer(f"https://localhost:{server.server_address[1]}/token", user, password, key, certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
