"""ADD of URLs and git repositories, from a web server on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandbox.build.settings import Settings
from sandbox.errors import StepFailed
from sandbox.image.tree import Tree
from tests.support.building import Workshop
from tests.support.web import Page, Web, serving

OCTOBER = "Wed, 21 Oct 2015 07:28:00 GMT"
OCTOBER_SECONDS = 1445412480


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Workshop(tmp_path)
    made.base("base", {"etc/keep": "kept"})
    return made


@pytest.fixture
def web() -> Iterator[Web]:
    with serving() as made:
        yield made


def added(workshop: Workshop, line: str, **more: bool) -> Tree:
    return workshop.tree(workshop.build(f"FROM base\nADD {line}\n", **more))


def sha(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


# URLs


def test_a_file_arrives_private_with_the_servers_time(workshop: Workshop, web: Web) -> None:
    web.pages["/d/a.txt"] = Page(b"hello", {"Last-Modified": OCTOBER})
    entry = (tree := added(workshop, f"{web.url}/d/a.txt /x/")).lookup("/x/a.txt")
    assert entry is not None
    assert (tree.read("/x/a.txt"), stat.S_IMODE(entry.stat.st_mode), int(entry.stat.st_mtime)) == (b"hello", 0o600, OCTOBER_SECONDS)
    assert (entry.stat.st_uid, entry.stat.st_gid) == (0, 0)


def test_destination_without_a_slash_names_the_file(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1")
    tree = added(workshop, f"--chmod=640 --chown=7:8 {web.url}/a?x=y /b")
    entry = tree.lookup("/b")
    assert entry is not None
    assert (stat.S_IMODE(entry.stat.st_mode), entry.stat.st_uid, entry.stat.st_gid) == (0o640, 7, 8)


def test_no_context_is_needed(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1")
    assert added(workshop, f"{web.url}/a /a", context=False).read("/a") == b"1"


def test_unchanged_file_is_cached_and_not_sent_again(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1", {"ETag": '"one"'})
    added(workshop, f"{web.url}/a /a")
    added(workshop, f"{web.url}/a /a")
    assert workshop.cached() == [True]
    assert [status for _, _, status in web.asked] == [200, 304]
    web.pages["/a"] = Page(b"2", {"ETag": '"two"'})
    assert added(workshop, f"{web.url}/a /a").read("/a") == b"2"
    assert workshop.cached() == [False]


def test_last_modified_spares_a_transfer_too(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1", {"Last-Modified": OCTOBER})
    added(workshop, f"{web.url}/a /a")
    added(workshop, f"{web.url}/a /b")
    assert [status for _, _, status in web.asked] == [200, 304]


def test_the_time_of_a_file_does_not_count(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1", {"Last-Modified": OCTOBER})
    added(workshop, f"{web.url}/a /a")
    web.pages["/a"] = Page(b"1")
    added(workshop, f"{web.url}/a /a")
    assert workshop.cached() == [True]


def test_a_file_with_its_checksum_is_asked_for_once(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1")
    line = f"--checksum={sha(b'1')} {web.url}/a /a"
    assert added(workshop, line).read("/a") == b"1"
    added(workshop, line)
    added(workshop, line, no_cache=True)
    assert len(web.asked) == 1


def test_a_wrong_checksum_is_an_error_that_names_both(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1")
    with pytest.raises(StepFailed, match=f"expected {sha(b'2')}, got {sha(b'1')}"):
        added(workshop, f"--checksum={sha(b'2')} {web.url}/a /a")


@pytest.mark.parametrize("checksum", ["sha512:00", "sha256:0", "abc", "sha256:" + "G" * 64])
def test_a_checksum_that_is_none_is_an_error(workshop: Workshop, web: Web, checksum: str) -> None:
    with pytest.raises(StepFailed, match="expected sha256: and 64 hexadecimal digits"):
        added(workshop, f"--checksum={checksum} {web.url}/a /a")
    assert web.asked == []


def test_what_the_server_refuses_is_said(workshop: Workshop, web: Web) -> None:
    with pytest.raises(StepFailed, match="the server says 404"):
        added(workshop, f"{web.url}/nope /a")


def test_a_server_that_is_not_there_is_said_with_a_hint(workshop: Workshop, web: Web) -> None:
    port = web.url.rpartition(":")[2]
    with pytest.raises(StepFailed, match=r"no connection to 127\.0\.0\.2") as caught:
        added(workshop, f"http://127.0.0.2:{port}/a /a")
    assert "online" in (caught.value.hint or "")


def test_a_host_nobody_knows_is_said(workshop: Workshop) -> None:
    with pytest.raises(StepFailed, match=r"host nowhere\.invalid is not known"):
        added(workshop, "http://nowhere.invalid/a /a")


def test_redirects_are_followed_and_the_name_is_the_first_urls(workshop: Workshop, web: Web) -> None:
    web.pages["/old"] = Page(status=302, headers={"Location": "/new"})
    web.pages["/new"] = Page(b"there")
    assert added(workshop, f"{web.url}/old /x/").read("/x/old") == b"there"


def test_a_password_in_a_url_is_not_in_the_message(workshop: Workshop, web: Web) -> None:
    with pytest.raises(StepFailed) as caught:
        added(workshop, f"{web.url.replace('//', '//me:secret@')}/nope /a")
    assert "secret" not in str(caught.value.__cause__)


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_an_archive_from_a_url_is_unpacked_only_when_asked(workshop: Workshop, web: Web) -> None:
    web.pages["/a.tgz"] = Page(archive({"in/side": b"x"}))
    assert added(workshop, f"{web.url}/a.tgz /x/").lookup("/x/a.tgz") is not None
    assert added(workshop, f"--unpack {web.url}/a.tgz /x/").read("/x/in/side") == b"x"


def test_a_local_archive_is_not_unpacked_when_told(workshop: Workshop) -> None:
    (workshop.context / "a.tgz").write_bytes(archive({"in/side": b"x"}))
    assert added(workshop, "a.tgz /x/").read("/x/in/side") == b"x"
    assert added(workshop, "--unpack=false a.tgz /x/").lookup("/x/a.tgz") is not None


def test_remote_and_local_sources_mix(workshop: Workshop, web: Web) -> None:
    workshop.file("local", "l")
    web.pages["/remote"] = Page(b"r")
    tree = added(workshop, f"local {web.url}/remote /x/")
    assert (tree.read("/x/local"), tree.read("/x/remote")) == (b"l", b"r")


def test_an_ignore_file_that_was_fetched_ignores_nothing(workshop: Workshop, web: Web) -> None:
    web.pages["/.dockerignore"] = Page(b"**")
    assert added(workshop, f"{web.url}/.dockerignore /x/").read("/x/.dockerignore") == b"**"


# git

Git = Callable[..., str]


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[tuple[str, Git]]:
    """A repository as BuildKit's own tests have it, served as plain files: its URL, and git in it."""
    root = tmp_path / "repository"
    root.mkdir()
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    for who in ("AUTHOR", "COMMITTER"):
        environ |= {f"GIT_{who}_NAME": "test", f"GIT_{who}_EMAIL": "test", f"GIT_{who}_DATE": "@1600000000 +0000"}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, env=environ, check=True, capture_output=True, text=True).stdout.strip()

    def commit(name: str, **files: str) -> None:
        for path, content in files.items():
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(content)
        git("add", "--all")
        git("commit", "-q", "-m", name)

    git("init", "-q", "-b", "master")
    commit("initial", foo="base\n")
    git("tag", "v0.0.1")
    git("branch", "base")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    commit("feature", foo="feature\n", **{"sub/foo": "subfeature\n"})
    git("branch", "feature")
    git("reset", "-q", "--hard", "base")
    commit("v0.0.2", foo="v0.0.2\n")
    git("tag", "-a", "-m", "annotated", "v0.0.2")
    commit("latest", foo="latest\n")
    git("update-server-info")
    with serving(root) as web:
        yield f"{web.url}/.git", git


@pytest.mark.parametrize(
    ("suffix", "expected"),
    [
        ("", "latest\n"),
        ("#v0.0.1", "base\n"),
        ("#v0.0.2", "v0.0.2\n"),
        ("#base", "base\n"),
        ("?ref=base", "base\n"),
        ("?branch=base", "base\n"),
        ("?tag=v0.0.2", "v0.0.2\n"),
        ("?tag=v0.0.2#refs/tags/v0.0.2", "v0.0.2\n"),
        ("?commit={v2}", "v0.0.2\n"),
        ("?commit={v2_short}", "v0.0.2\n"),
        ("?ref={v2}", "v0.0.2\n"),
        ("?tag=v0.0.2&commit={v2}", "v0.0.2\n"),
        ("?ref={v2}&checksum={v2}", "v0.0.2\n"),
        ("#feature:sub", "subfeature\n"),
        ("?subdir=sub&ref=feature", "subfeature\n"),
    ],
)
def test_a_reference_brings_these_files(workshop: Workshop, repository: tuple[str, Git], suffix: str, expected: str) -> None:
    url, git = repository
    v2 = git("rev-parse", "v0.0.2^{commit}")
    tree = added(workshop, url + suffix.format(v2=v2, v2_short=v2[:8]) + " /repo/")
    assert tree.read("/repo/foo").decode() == expected
    assert tree.lookup("/repo/.git") is None


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("?tag=v0.0.2&commit={latest}", "expected commit {latest}, refs/tags/v0.0.2 is {v2}"),
        ("?branch=invalid", "no branch or tag refs/heads/invalid"),
        ("?branch=v0.0.2", "no branch or tag refs/heads/v0.0.2"),
        ("?ref={v2_short}", "no branch or tag"),
        ("?tag=v0.0.2#refs/heads/master", "contradict each other"),
        ("?tag=a&branch=b", "branch and tag: give one of them"),
        ("?nope=1", "unknown key nope"),
        ("?ref=", "ref: expected a value"),
        ("?ref=a&ref=b", "ref: given twice"),
        ("?submodules=perhaps", "expected true or false"),
        ("#feature:nowhere", "no directory nowhere in"),
        ("#feature:run", "no directory run in"),
        ("#" + "0" * 40, "no commit 000000"),
    ],
)
def test_a_reference_that_cannot_be_meant_is_an_error(workshop: Workshop, repository: tuple[str, Git], suffix: str, message: str) -> None:
    url, git = repository
    v2 = git("rev-parse", "v0.0.2^{commit}")
    values = {"v2": v2, "v2_short": v2[:8], "latest": git("rev-parse", "master")}
    with pytest.raises(StepFailed) as caught:
        added(workshop, url + suffix.format(**values) + " /repo/")
    assert message.format(**values) in str(caught.value)


def test_files_are_of_the_commits_time_and_of_git_modes(workshop: Workshop, repository: tuple[str, Git]) -> None:
    tree = added(workshop, f"--chown=4242:8484 {repository[0]}#feature /repo")
    found = {name: tree.lookup(f"/repo/{name}") for name in ("foo", "run", "sub")}
    modes = {name: oct(stat.S_IMODE(entry.stat.st_mode)) for name, entry in found.items() if entry}
    assert modes == {"foo": "0o644", "run": "0o755", "sub": "0o755"}
    facts = {(entry.stat.st_uid, entry.stat.st_gid, int(entry.stat.st_mtime)) for entry in found.values() if entry}
    assert facts == {(4242, 8484, 1600000000)}


def test_keep_git_dir_brings_a_working_repository(workshop: Workshop, repository: tuple[str, Git], tmp_path: Path) -> None:
    url, git = repository
    image = workshop.build(f"FROM base\nADD --keep-git-dir {url}#v0.0.2 /repo\n")
    layer = Path(workshop.store.lowers(image.top)[-1]) / "repo"
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}

    def inside(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=layer, env=environ, check=True, capture_output=True, text=True).stdout.strip()

    assert inside("rev-parse", "HEAD") == git("rev-parse", "v0.0.2^{commit}")
    assert inside("status", "-s") == ""
    assert inside("remote", "get-url", "origin") == url


def test_an_unmoved_branch_is_cached_and_a_moved_one_is_not(workshop: Workshop, repository: tuple[str, Git], tmp_path: Path) -> None:
    url, git = repository
    added(workshop, f"{url}#base /repo")
    added(workshop, f"{url}#base /repo")
    assert workshop.cached() == [True]
    git("branch", "-f", "base", "master")
    git("update-server-info")
    assert added(workshop, f"{url}#base /repo").read("/repo/foo") == b"latest\n"


def test_a_commit_that_was_there_once_needs_no_network(workshop: Workshop, repository: tuple[str, Git]) -> None:
    url, git = repository
    commit = git("rev-parse", "master")
    added(workshop, f"{url}#master /repo")
    git("update-ref", "-d", "HEAD")
    for name in Path(git("rev-parse", "--absolute-git-dir")).glob("info/refs"):
        name.unlink()
    assert added(workshop, f"{url}#{commit} /elsewhere").read("/elsewhere/foo") == b"latest\n"


def test_checksum_flag_may_be_the_beginning_of_the_commit(workshop: Workshop, repository: tuple[str, Git]) -> None:
    url, git = repository
    commit = git("rev-parse", "v0.0.2^{commit}")
    assert added(workshop, f"--checksum={commit[:7]} {url}#v0.0.2 /repo").read("/repo/foo") == b"v0.0.2\n"
    with pytest.raises(StepFailed, match="expected commit"):
        added(workshop, f"--checksum={commit[:7]} {url}#v0.0.1 /repo")
    with pytest.raises(StepFailed, match="expected a commit's hexadecimal id"):
        added(workshop, f"--checksum=foobar {url}#v0.0.1 /repo")


def test_exclude_leaves_files_of_a_repository_out(workshop: Workshop, repository: tuple[str, Git]) -> None:
    tree = added(workshop, f"--exclude=sub {repository[0]}#feature /repo")
    assert tree.lookup("/repo/sub") is None
    assert tree.lookup("/repo/foo") is not None


def test_a_repository_cannot_point_git_at_the_host(workshop: Workshop, repository: tuple[str, Git], tmp_path: Path) -> None:
    """A submodule with a path of the host as its URL: git must not read it (canary: what lies there does not arrive)."""
    url, git = repository
    canary = tmp_path / "canary"
    subprocess.run(["git", "clone", "-q", "--bare", git("rev-parse", "--absolute-git-dir"), str(canary)], check=True, capture_output=True)
    git("-c", "protocol.file.allow=always", "submodule", "add", "-q", f"file://{canary}", "evil")
    git("commit", "-q", "-m", "evil")
    git("update-server-info")
    with pytest.raises(StepFailed, match=r"git submodule: .*transport 'file' not allowed"):
        added(workshop, f"{url} /repo")
    assert added(workshop, f"{url}?submodules=false /repo").lookup("/repo/evil/foo") is None


# credentials


def given(**secrets: str) -> Settings:
    return Settings(secrets={name: value.encode() for name, value in secrets.items()})


def test_secrets_of_a_host_are_its_credentials(workshop: Workshop, web: Web) -> None:
    web.pages["/a"] = Page(b"1")
    text = f"FROM base\nADD {web.url}/a /a\n"
    workshop.build(text, settings=given(**{"HTTP_AUTH_TOKEN_127.0.0.1": "t0ken"}), no_cache=True)
    workshop.build(text, settings=given(**{"HTTP_AUTH_HEADER_127.0.0.1": "Basic abc\n"}), no_cache=True)
    image = workshop.build(text, settings=given(**{"HTTP_AUTH_TOKEN_other.host": "t0ken"}), no_cache=True)
    assert web.authorizations == ["Bearer t0ken", "Basic abc", None]
    assert b"t0ken" not in image.config.raw


def test_credentials_do_not_follow_a_redirect_to_another_host(workshop: Workshop, web: Web) -> None:
    with serving() as other:
        other.pages["/b"] = Page(b"2")
        web.pages["/a"] = Page(status=302, headers={"Location": other.url.replace("127.0.0.1", "localhost") + "/b"})
        settings = given(**{"HTTP_AUTH_TOKEN_127.0.0.1": "t0ken"})
        assert workshop.tree(workshop.build(f"FROM base\nADD {web.url}/a /a\n", settings=settings)).read("/a") == b"2"
        assert (web.authorizations, other.authorizations) == (["Bearer t0ken"], [None])


def test_git_gets_its_token_and_no_command_line_shows_it(workshop: Workshop, repository: tuple[str, Git], tmp_path: Path) -> None:
    git = tmp_path / "bin" / "git"
    git.parent.mkdir()
    notes = f'echo "$@" >> {tmp_path}/seen\necho "$GIT_CONFIG_VALUE_0" >> {tmp_path}/headers\n'
    git.write_text(f'#!/bin/sh\n{notes}exec {shutil.which("git")} "$@"\n')
    git.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
        workshop.build(f"FROM base\nADD {repository[0]} /r\n", settings=given(GIT_AUTH_TOKEN="t0ken"))
    assert set((tmp_path / "headers").read_text().splitlines()) == {"Authorization: basic eC1hY2Nlc3MtdG9rZW46dDBrZW4="}
    assert "t0ken" not in (tmp_path / "seen").read_text()
    assert "eC1hY" not in (tmp_path / "seen").read_text()
