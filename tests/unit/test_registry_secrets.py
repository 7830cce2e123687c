"""Credentials, challenges, tokens and redirects: where secrets are found, and that they go no further."""

from __future__ import annotations

import base64
import json
import logging
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.errors import RegistryError
from sandbox.image.registry.access import Access, Terms
from sandbox.image.registry.credentials import Credential, CredentialFiles
from sandbox.image.registry.tokens import Authorizer, Challenge, _token_request, parse_challenges
from sandbox.image.registry.wire import Patience, Request, Wire, _redirected, shown

SECRET = "hunter2"


def _auth(user: str = "who", secret: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def _write(path: Path, config: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))


# Files

KEYS = [
    ("a.example", "", "a.example"),
    ("a.example", "", "https://a.example"),
    ("a.example", "", "https://a.example/v1/"),
    ("a.example", "team/app", "a.example/team"),
    ("docker.io", "library/x", "https://index.docker.io/v1/"),
    ("docker.io", "library/x", "docker.io"),
    ("127.0.0.1:5000", "", "http://127.0.0.1:5000"),
]


@pytest.mark.parametrize(("registry", "repository", "key"), KEYS)
def test_an_entry_is_found_however_it_was_written(tmp_path: Path, registry: str, repository: str, key: str) -> None:
    _write(tmp_path / "auth.json", {"auths": {"b.example": _auth("other"), key: _auth()}})
    found = CredentialFiles({}, tmp_path, tmp_path / "auth.json").find(registry, repository)
    assert found == Credential("who", SECRET)


def test_the_most_particular_entry_counts(tmp_path: Path) -> None:
    auths = {"a.example": _auth("all"), "a.example/team": _auth("team"), "a.example/team/app": _auth("app")}
    _write(tmp_path / "auth.json", {"auths": auths})
    files = CredentialFiles({}, tmp_path, tmp_path / "auth.json")
    users = [files.find("a.example", repository) for repository in ("team/app", "team/other", "teams", "")]
    assert [user.user for user in users if user] == ["app", "team", "all", "all"]
    assert files.find("a.example.evil.example", "team") is None


def test_files_are_asked_in_podmans_order_then_docker(tmp_path: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    places = [tmp_path / "run/containers/auth.json", tmp_path / "config/containers/auth.json", tmp_path / ".docker/config.json"]
    for number in reversed(range(3)):
        _write(places[number], {"auths": {"a.example": _auth(f"user{number}")}})
        found = CredentialFiles(environ, tmp_path).find("a.example")
        assert found is not None and found.user == f"user{number}"
    _write(tmp_path / "given.json", {"auths": {}})
    assert CredentialFiles({**environ, "REGISTRY_AUTH_FILE": str(tmp_path / "given.json")}, tmp_path).find("a.example") is None
    assert CredentialFiles(environ, tmp_path, tmp_path / "given.json").find("a.example") is None


def test_what_is_stored_is_for_the_owner_and_keeps_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / ".docker/config.json"
    _write(path, {"auths": {"b.example": _auth("other")}, "psFormat": "table"})
    files = CredentialFiles({}, tmp_path)
    assert files.store("a.example", Credential("who", SECRET)) == str(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.registries() == ["a.example", "b.example"] and json.loads(path.read_text())["psFormat"] == "table"
    assert files.erase("a.example") == [str(path)] and files.find("a.example") is None and files.find("b.example")
    assert files.erase("a.example") == []


def test_an_identity_token_is_no_password(tmp_path: Path) -> None:
    _write(tmp_path / "auth.json", {"auths": {"a.example": {**_auth("who", ""), "identitytoken": "it"}}})
    found = CredentialFiles({}, tmp_path, tmp_path / "auth.json").find("a.example")
    assert found == Credential("who", "it", is_token=True)
    request = _token_request("https://t.example/token", "s", ("repository:a:pull",), found)
    assert request.method == "POST" and "Authorization" not in request.headers and "it" not in request.url


@pytest.mark.parametrize("damage", ['{"auths": {"a.example": {"auth": "%%%"}}}', "not JSON " + SECRET, "[]"])
def test_a_damaged_file_is_an_error_without_what_is_in_it(tmp_path: Path, damage: str) -> None:
    (tmp_path / "auth.json").write_text(damage)
    with pytest.raises(RegistryError) as told:
        CredentialFiles({}, tmp_path, tmp_path / "auth.json").find("a.example")
    assert SECRET not in f"{told.value!r}{told.value}{told.value.hint}"


# Helpers

HELPER = """#!/bin/sh
echo "$1" >> "$0.asked"
read given
case "$1" in
get) test -f "$0.kept" && cat "$0.kept" || { echo "credentials not found in native keychain"; exit 1; } ;;
store) echo "$given" > "$0.kept" ;;
erase) rm "$0.kept" ;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """docker-credential-box, which keeps one credential in a file."""
    program = tmp_path / "bin/docker-credential-box"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("config", [{"credsStore": "box"}, {"credHelpers": {"a.example": "box"}}])
def test_a_helper_keeps_what_the_file_then_does_not(tmp_path: Path, helper: Path, config: dict[str, object]) -> None:
    _write(tmp_path / ".docker/config.json", config)
    files = CredentialFiles({"PATH": f"{helper.parent}:/usr/bin:/bin"}, tmp_path)
    assert files.find("a.example") is None
    assert files.store("a.example", Credential("who", SECRET)) == "credential helper box"
    assert SECRET not in (tmp_path / ".docker/config.json").read_text() and SECRET in Path(f"{helper}.kept").read_text()
    assert files.find("a.example") == Credential("who", SECRET)
    assert "credential helper box" in files.erase("a.example") and not Path(f"{helper}.kept").exists()
    asked = Path(f"{helper}.asked").read_text().split()
    assert asked.count("store") == asked.count("erase") == 1


def test_a_helper_that_fails_is_named_and_its_words_are_no_secret(tmp_path: Path, helper: Path) -> None:
    files = CredentialFiles({"PATH": f"{helper.parent}:/usr/bin:/bin"}, tmp_path)
    _write(tmp_path / ".docker/config.json", {"credsStore": "box"})
    helper.write_text(f'#!/bin/sh\necho \'{{"Secret": "{SECRET}"\'\n')
    with pytest.raises(RegistryError, match="credential helper box") as told:
        files.find("a.example")
    assert SECRET not in f"{told.value!r}{told.value}"
    helper.write_text("#!/bin/sh\ncat\nexit 3\n")
    with pytest.raises(RegistryError, match="store failed") as told:
        files.store("a.example", Credential("who", SECRET))
    assert SECRET not in f"{told.value!r}{told.value}"
    for name in ("none", "../box"):
        _write(tmp_path / ".docker/config.json", {"credsStore": name})
        with pytest.raises(RegistryError, match="credential helper"):
            files.find("a.example")


# Challenges

CHALLENGES = [
    (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
    (["Basic"], [Challenge("basic", {})]),
    (
        ['Bearer realm="https://t.example/token",service="s",scope="repository:a/b:pull,push"'],
        [Challenge("bearer", {"realm": "https://t.example/token", "service": "s", "scope": "repository:a/b:pull,push"})],
    ),
    (['Negotiate, Basic realm="a, b", Bearer Realm=plain'],
     [Challenge("negotiate", {}), Challenge("basic", {"realm": "a, b"}), Challenge("bearer", {"realm": "plain"})]),
    ([r'Bearer realm="with \"quotes\"", error="invalid_token"'],
     [Challenge("bearer", {"realm": 'with "quotes"', "error": "invalid_token"})]),
    (["Basic realm=a", "Bearer realm=b"], [Challenge("basic", {"realm": "a"}), Challenge("bearer", {"realm": "b"})]),
    (["", " , ,", "=x"], []),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), CHALLENGES)
def test_challenges_are_read_as_the_specification_writes_them(values: list[str], expected: list[Challenge]) -> None:
    assert parse_challenges(values) == expected


REALMS = {
    "ftp://t.example/": "no token server that could be asked",
    "nothing": "no token server that could be asked",
    "http://t.example/token": "without TLS",
    "https://127.0.0.1/token": "of this machine",
    "https://localhost:5000/token": "of this machine",
    "https://[::1]/token": "of this machine",
    "https://169.254.169.254/latest": "of this machine",
}


class _Answered:
    """What `Authorizer.challenged` reads of an answer."""

    def __init__(self, realm: str) -> None:
        self.realm = realm

    def headers(self, _: str) -> list[str]:
        return [f'Bearer realm="{self.realm}",service="s"']


@pytest.mark.parametrize("realm", REALMS)
def test_no_secret_goes_to_such_a_token_server(realm: str) -> None:
    authorizer = Authorizer(Wire({}), "https://registry.example", True, lambda: Credential("who", SECRET))
    with pytest.raises(RegistryError, match=REALMS[realm]):
        authorizer.challenged(_Answered(realm), (), None)  # type: ignore[arg-type]  # what it reads of one
    assert SECRET not in repr(authorizer)


# Redirects

REFUSED = {
    "http://b.example/x": "away from TLS",
    "https://127.0.0.1/x": "an address of this machine",
    "https://localhost./x": "an address of this machine",
    "https://[::ffff:127.0.0.1]/x": "an address of this machine",
    "https://169.254.169.254/x": "an address of this machine",
    "https://0.0.0.0/x": "an address of this machine",
    "file:///etc/passwd": "no web address",
    "https:///x": "no web address",
}


@pytest.mark.parametrize("target", REFUSED)
def test_a_redirect_that_no_registry_may_send_is_refused(target: str) -> None:
    with pytest.raises(RegistryError, match=REFUSED[target]):
        _redirected(Request("GET", "https://a.example/v2/"), f"{target}?token={SECRET}")


@pytest.mark.parametrize(
    ("target", "is_kept"),
    [("https://a.example/y", True), ("https://a.example:8443/y", False), ("https://b.example/y", False), ("https://x.a.example/y", False)],
)
def test_only_the_same_server_hears_again_who_we_are(target: str, is_kept: bool) -> None:
    request = Request("GET", "https://a.example/x", {"Authorization": f"Bearer {SECRET}", "Range": "bytes=5-"})
    moved = _redirected(request, target)
    assert ("Authorization" in moved.headers) == is_kept and moved.headers["Range"] == "bytes=5-"
    assert SECRET not in repr(request) + repr(moved)


def test_nothing_that_is_told_holds_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    credential = Credential("who", SECRET)
    terms = Terms(credential=credential, patience=Patience(tries=1))
    with Access({"HOME": str(tmp_path), "https_proxy": f"http://me:{SECRET}@127.0.0.1:1"}, terms) as access:
        repository = access.registry("registry.example")
        with pytest.raises(RegistryError) as told:
            repository.check_login()
        words = [repr(each) for each in (credential, terms, repository, told.value)]
    assert SECRET not in "".join([*words, str(told.value), caplog.text])
    assert shown(f"https://who:{SECRET}@a.example/x?sig={SECRET}") == "https://a.example/x"
