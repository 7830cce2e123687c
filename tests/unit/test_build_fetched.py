"""What ADD fetched can be counted and taken away, and is fetched again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.disk import Choice, cache_uses, prune_cache
from sandbox.build.fetched import Fetched
from tests.support.building import Workshop
from tests.support.web import Page, serving


def test_downloads_are_rows_and_are_fetched_again_when_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    workshop = Workshop(tmp_path)
    fetched = Fetched(workshop.store.root)
    assert fetched.rows() == []
    with serving() as web:
        web.pages["/a"] = Page(b"12345", {"ETag": '"x"'})
        workshop.build(f"FROM scratch\nADD {web.url}/a /a\n")
        (row,) = fetched.rows()
        assert (row.kind, row.size, row.description) == ("download", 5, f"{web.url}/a")
        fetched.remove(row)
        assert fetched.rows() == []
        image = workshop.build(f"FROM scratch\nADD {web.url}/a /a\n", no_cache=True)
        assert workshop.tree(image).read("/a") == b"12345"
        assert [status for _, _, status in web.asked] == [200, 200]


def test_what_a_broken_transfer_left_can_be_removed(tmp_path: Path) -> None:
    fetched = Fetched(tmp_path)
    fetched.http.mkdir(parents=True)
    (fetched.http / "new-0").write_bytes(b"half")
    (row,) = fetched.rows()
    assert row.description == "not complete"
    fetched.remove(row)
    assert fetched.rows() == []


def test_repositories_are_rows(tmp_path: Path) -> None:
    fetched = Fetched(tmp_path)
    (fetched.git / "abc").mkdir(parents=True)
    (fetched.git / "abc" / "pack").write_bytes(b"123")
    (fetched.git / "abc.lock").touch()
    (row,) = fetched.rows()
    assert (row.kind, row.size) == ("repository", 3)
    fetched.remove(row)
    assert list(fetched.git.iterdir()) == []


def test_pruning_the_build_cache_takes_downloads_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    workshop = Workshop(tmp_path)
    with serving() as web:
        web.pages["/a"] = Page(b"12345")
        workshop.build(f"FROM scratch\nADD {web.url}/a /a\n", tags=("kept",))
    assert [use.kind for use in cache_uses(workshop.store)] == ["download"]
    assert prune_cache(workshop.store, set(), Choice()).reclaimed == 5
    assert cache_uses(workshop.store) == []
