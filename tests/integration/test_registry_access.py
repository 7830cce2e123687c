"""Who may: Debian's docker-registry with TLS of an own authority, htpasswd and tokens; mirrors, blocked names and proxies."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.oci import MANIFEST_TYPE
from tests.support import image_verify, registry
from tests.support.authority import SERVICE, Authority, TokenServer, authority, token_server
from tests.support.command_line import CommandLine, command_line
from tests.support.forwarder import forwarder
from tests.support.host import requires
from tests.support.registry import RegistryServer, registry_server

pytestmark = [requires("root", "tool:openssl"), pytest.mark.skipif(registry.missing() is not None, reason=str(registry.missing()))]
USER, PASSWORD = "who", "s3cret-password"
HTPASSWD = f"{USER}:$2b$04$O0iUl10fDl6rbAT.vBJujeCAH5GjP24.Z2pHjUiTz/8eCixpQfVOO\n"


class Home:
    """A person's: their credentials and configuration, and what is said of certificates."""

    def __init__(self, sandbox: CommandLine, directory: Path, **environ: str) -> None:
        directory.mkdir(exist_ok=True)
        self.sandbox, self.directory = sandbox, directory
        cleared = dict.fromkeys(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_RUNTIME_DIR"), "")
        self.environ = {**cleared, "HOME": str(directory), **environ}

    @property
    def credentials(self) -> Path:
        return self.directory / ".docker/config.json"

    def ok(self, *words: str, stdin: str = "") -> str:
        done = self.sandbox.ok(*words, stdin=stdin.encode(), env=self.environ)
        return done.out + done.err

    def fails(self, *words: str, stdin: str = "") -> str:
        done = self.sandbox(*words, stdin=stdin.encode(), env=self.environ)
        assert done.status == 1, done
        return done.err

    def login(self, host: str) -> str:
        return self.ok("login", "-u", USER, "--password-stdin", host, stdin=f"{PASSWORD}\n")


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return authority(tmp_path / "ca")


def _tls(ca: Authority, name: str = "localhost") -> list[str]:
    certificate, key = ca.issue(name)
    return ["  tls:", f"    certificate: {certificate}", f"    key: {key}"]


@pytest.fixture
def locked(tmp_path: Path, ca: Authority) -> Iterator[RegistryServer]:
    """TLS and a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = ["auth:", f"  htpasswd: {{realm: tests, path: {tmp_path}/htpasswd}}"]
    with registry_server(tmp_path / "registry", settings=[*_tls(ca), *auth]) as running:
        yield running


@pytest.fixture
def tokens(tmp_path: Path, ca: Authority) -> Iterator[TokenServer]:
    with token_server(tmp_path, ca, user=USER, password=PASSWORD) as running:
        yield running


@pytest.fixture
def guarded(tmp_path: Path, ca: Authority, tokens: TokenServer) -> Iterator[RegistryServer]:
    """TLS and tokens."""
    auth = f"  token: {{realm: '{tokens.realm}', service: {SERVICE}, issuer: {SERVICE}, rootcertbundle: {tokens.certificate}}}"
    with registry_server(tmp_path / "registry", settings=[*_tls(ca), "auth:", auth]) as running:
        yield running


def _skopeo(home: Home, ca: Authority, *words: str) -> bytes:
    certificates = home.directory / "certs"
    certificates.mkdir(exist_ok=True)
    (certificates / "ca.crt").write_bytes(ca.certificate.read_bytes())
    argv = ["skopeo", "--insecure-policy", words[0], *words[1:]]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin", **home.environ})
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


# TLS and passwords


def test_a_password_lets_in_until_the_logout(locked: RegistryServer, ca: Authority, sandbox: CommandLine, tmp_path: Path) -> None:
    home, name = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate)), locked.name("team/app:1")
    assert "access refused without a login" in home.fails("push", "busybox", name)
    wrong = home.fails("login", "-u", USER, "--password-stdin", locked.host, stdin="not-the-password\n")
    assert f"access refused to {USER}" in wrong and "not-the-password" not in wrong
    assert not home.credentials.exists()
    assert "Login Succeeded" in home.login(locked.host)
    assert home.credentials.stat().st_mode & 0o777 == 0o600
    home.ok("push", "busybox", name)
    image_id = sandbox.ok("images", "-q", "--no-trunc").lines
    home.ok("rmi", "busybox")
    home.ok("pull", name)
    assert sandbox.ok("images", "-q", "--no-trunc").lines == image_id
    assert PASSWORD not in json.dumps(sandbox.json("inspect", name))
    assert "Removed login credentials" in home.ok("logout", locked.host)
    assert "access refused without a login" in home.fails("pull", name)
    assert PASSWORD not in home.credentials.read_text()
    image_verify.verify_store(sandbox.root)


def test_skopeo_uses_the_same_credentials_and_the_same_images(
    locked: RegistryServer, ca: Authority, sandbox: CommandLine, tmp_path: Path
) -> None:
    home = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate))
    name, copied = locked.name("team/app:1"), locked.name("copied/app:1")
    home.login(locked.host)
    digest = home.ok("push", "busybox", name).split("digest: ")[1].split()[0]
    certificates = f"{home.directory}/certs"
    told = _skopeo(home, ca, "inspect", "--authfile", str(home.credentials), "--cert-dir", certificates, f"docker://{name}")
    assert json.loads(told)["Digest"] == digest
    both = ["--src-cert-dir", certificates, "--dest-cert-dir", certificates]
    _skopeo(home, ca, "copy", "-q", "--authfile", str(home.credentials), *both, f"docker://{name}", f"docker://{copied}")
    assert digest in home.ok("pull", copied)
    # and the other way: what skopeo's login wrote is ours to use
    theirs = home.directory / "theirs.json"
    _skopeo(home, ca, "login", "--authfile", str(theirs), "--cert-dir", certificates, "-u", USER, "-p", PASSWORD, locked.host)
    home.ok("logout", locked.host)
    home.ok("pull", "--authfile", str(theirs), name)


WAYS = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "certs.d", "--tls-verify=false", "nothing"]


@pytest.mark.parametrize("way", WAYS)
def test_an_authority_is_trusted_when_something_says_so(
    locked: RegistryServer, ca: Authority, sandbox: CommandLine, tmp_path: Path, way: str
) -> None:
    home = Home(sandbox, tmp_path / "home", **({way: str(ca.certificate)} if way.isupper() else {}))
    login = ["login", "-u", USER, "--password-stdin", locked.host]
    if way == "certs.d":
        place = home.directory / ".config/containers/certs.d" / locked.host
        place.mkdir(parents=True)
        (place / "ca.crt").write_bytes(ca.certificate.read_bytes())
    elif way.startswith("--"):
        login.append(way)
    elif way == "nothing":
        told = home.fails(*login, stdin=PASSWORD)
        assert "its certificate cannot be trusted" in told and "ca.crt" in told
        assert not any("GET /v2/ 200" in line for line in locked.requests()), "no password was sent"
        return
    assert "Login Succeeded" in home.ok(*login, stdin=PASSWORD)


# Tokens


def test_tokens_are_for_what_is_done_and_for_nobody_else(
    guarded: RegistryServer, tokens: TokenServer, ca: Authority, sandbox: CommandLine, tmp_path: Path
) -> None:
    home = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate))
    secret, public = guarded.name("team/app:1"), guarded.name("public/app:1")
    assert "access refused" in home.fails("push", "busybox", secret)
    assert "access refused to who" in home.fails("login", "-u", USER, "--password-stdin", guarded.host, stdin="wrong")
    home.login(guarded.host)
    tokens.asked.clear()
    home.ok("push", "busybox", secret)
    assert tokens.asked and {user for user, _ in tokens.asked} == {USER}
    assert {scope for _, scopes in tokens.asked for scope in scopes} == {"repository:team/app:pull,push"}
    assert len(tokens.asked) == 1, "one token serves a whole push"
    home.ok("push", "busybox", public)
    assert ("repository:public/app:pull,push", "repository:team/app:pull") in {scopes for _, scopes in tokens.asked}, "for a mount"
    home.ok("logout", guarded.host)
    tokens.asked.clear()
    home.ok("pull", public)
    assert {user for user, _ in tokens.asked} == {""}
    assert "access refused without a login" in home.fails("pull", secret)


def test_a_token_that_has_expired_is_replaced_once(
    guarded: RegistryServer, tokens: TokenServer, ca: Authority, sandbox: CommandLine, tmp_path: Path
) -> None:
    home = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate))
    home.login(guarded.host)
    tokens.asked.clear()
    tokens.stale = 1
    home.ok("push", "busybox", guarded.name("team/app:1"))
    assert tokens.stale == 0 and len(tokens.asked) == 2
    tokens.stale = 1000
    assert "access refused" in home.fails("pull", guarded.name("team/app:1"))
    assert tokens.stale > 990, "it is not asked for ever"
    tokens.stale = 0
    home.ok("pull", guarded.name("team/app:1"))


# registries.conf


def _configure(home: Home, text: str) -> None:
    path = home.directory / ".config/containers/registries.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry_server(tmp_path / "plain") as running:
        yield running


def test_a_name_is_pulled_from_its_mirror_and_pushed_to_its_registry(plain: RegistryServer, sandbox: CommandLine, tmp_path: Path) -> None:
    home = Home(sandbox, tmp_path / "home")
    with registry_server(tmp_path / "mirror") as mirror:
        table = f'[[registry]]\nprefix = "example.test/team"\nlocation = "{plain.host}/real"\ninsecure = true\n'
        blocked = '[[registry]]\nlocation = "bad.test"\nblocked = true\n'
        _configure(home, f'{table}[[registry.mirror]]\nlocation = "{mirror.host}/copy"\n{blocked}')
        home.ok("push", "busybox", "example.test/team/app:1")
        assert not mirror.requests(), "a mirror is for pulls"
        assert any(line.startswith("PUT /v2/real/app/manifests/1 201") for line in plain.requests())
        home.ok("pull", "example.test/team/app:1")
        mirror.wait_logged("/v2/copy/app/manifests/1")  # it is asked first, and has nothing
        home.ok("push", "busybox", mirror.name("copy/app:1"))
        home.ok("rmi", "example.test/team/app:1", "busybox")
        before = len(plain.requests())
        home.ok("pull", "example.test/team/app:1")
        assert any("/v2/copy/app/blobs/" in line for line in mirror.requests())
        assert len(plain.requests()) == before
    assert "blocked by registries.conf" in home.fails("pull", "bad.test/app:1")
    assert "blocked by registries.conf" in home.fails("push", "example.test/team/app:1", "bad.test/app:1")


def test_a_build_cache_goes_where_registries_conf_says_and_comes_by_mirrors(
    plain: RegistryServer, sandbox: CommandLine, tmp_path: Path, busybox_tar: Path
) -> None:
    home = Home(sandbox, tmp_path / "home")
    with registry_server(tmp_path / "mirror") as mirror:
        table = f'[[registry]]\nprefix = "example.test"\nlocation = "{plain.host}"\ninsecure = true\n'
        _configure(home, table + f'[[registry.mirror]]\nlocation = "{mirror.host}"\n')
        text = "FROM busybox\nRUN seq 100000 > /numbers\n"
        cache = "example.test/team/cache:main"
        home.ok("build", "--cache-to", f"type=registry,ref={cache}", "-t", "example.test/team/app", "-", stdin=text)
        raw = json.loads(registry.fetch(f"http://{plain.host}/v2/team/cache/manifests/main", MANIFEST_TYPE))
        assert [layer["mediaType"].rpartition("+")[2] for layer in raw["layers"]] == ["gzip"]
        assert raw["layers"][0]["size"] < 400_000, "588,895 bytes of digits"
        home.ok("push", "example.test/team/app")
        before = len(plain.requests())
        home.ok("build", "--cache-to", "type=registry,ref=example.test/team/other", "-", stdin=text)
        assert any("mount=" in line and "from=team%2Fapp" in line and line.endswith("201") for line in plain.requests()[before:])
        copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
        subprocess.run([*copy, f"docker://{plain.name('team/app')}", f"docker://{mirror.name('team/cache:x')}"], check=True, timeout=60)
        with command_line(tmp_path / "cold", (busybox_tar, "busybox")) as cold:
            other = Home(cold, home.directory)
            told = other.ok("build", "--progress", "plain", "--cache-from", cache, "-t", "app", "-", stdin=text)
            assert told.count("CACHED") >= 1
            layer = raw["layers"][0]["digest"]
            assert any(f"GET /v2/team/cache/blobs/{layer}" in line and line.endswith("200") for line in mirror.requests())
            assert cold.ok("run", "--rm", "app", "tail", "-1", "/numbers").out == "100000\n"


# Proxies


def test_a_proxy_takes_what_its_exceptions_do_not_name(ca: Authority, sandbox: CommandLine, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry", settings=_tls(ca, "registry.test")) as server:
        port = int(server.host.rpartition(":")[2])
        with forwarder(f"registry.test:{port}", port) as proxy:
            name, place = f"registry.test:{port}/team/app:1", proxy.url.replace("http://", "http://me:secret@")
            home = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate), HTTPS_PROXY=place)
            home.ok("push", "busybox", name)
            home.ok("pull", name)
            assert proxy.seen and {first.split()[0] for first, _ in proxy.seen} == {"CONNECT"}
            assert {proof for _, proof in proxy.seen} == {"Basic bWU6c2VjcmV0"}
            without = Home(sandbox, tmp_path / "home", SSL_CERT_FILE=str(ca.certificate), HTTPS_PROXY=place, NO_PROXY="other, .test")
            told = without.fails("pull", name)
            assert "host not known" in told or "no connection" in told
            assert "secret" not in told
