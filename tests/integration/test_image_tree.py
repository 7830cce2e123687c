"""`image tree`, `search`, `images --digests`: what images share and what registries have, as a person asks for it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from magics.treemap import LayerMap, total
from magics.verbs import run_verb
from sandbox import Engine
from sandbox.errors import InvalidOption, RegistryError
from sandbox.image.registry.access import Terms
from sandbox.image.registry.wire import Patience
from tests.support import registry as real_registry
from tests.support.bad_registry import BadRegistry, bad_registry
from tests.support.command_line import CommandLine
from tests.support.host import requires
from tests.support.registry import registry_server

pytestmark = requires("root")
TERMS = Terms(patience=Patience(tries=2, pause=0.01))


@pytest.fixture
def three(engine: Engine, tmp_path: Path) -> Engine:
    """Two images on one base, and one by itself."""
    (tmp_path / "context").mkdir()
    for name, size in (("base", 4000), ("one", 1000), ("two", 2000), ("<other>", 500)):
        (tmp_path / "context" / name).write_bytes(bytes(size))
    for tag, text in {
        "base": "FROM scratch\nCOPY base /\n",
        "app:one": "FROM base\nCOPY one /\n",
        "app:two": "FROM base\nCOPY two /\n",
        "other": 'FROM scratch\nCOPY ["<other>", "/"]\n',
    }.items():
        engine.build(tmp_path / "context", dockerfile=text, tags=[tag])
    return engine


def test_a_shared_layer_stands_once_with_all_that_use_it(three: Engine) -> None:
    base, other = three.image_tree()
    assert (base.size, base.used_by, base.total, other.size, other.used_by) == (4000, 3, 7000, 500, 1)
    assert [(child.size, child.used_by) for child in base.children] == [(2000, 1), (1000, 1)]
    assert base.images == [three.image("base").id] and base.children[0].images == [three.image("app:two").id]
    (only,) = three.image_tree([three.image("app:one")])
    assert (only.used_by, only.total) == (1, 5000)


def test_the_table_says_what_sharing_saves(three: Engine) -> None:
    sandbox = CommandLine(three.root)
    lines = sandbox.ok("image", "tree").lines
    assert [line.split()[:1] for line in lines[2:4]] == [["├─"], ["└─"]]
    assert "base:latest" in lines[1] and "app:two" in lines[2] and "app:one" in lines[3]
    assert lines[-1] == "4 layers, 7.5kB: 4kB shared, which saves 8kB"
    (root,) = sandbox.json("image", "tree", "app:one", "--format", "json")
    assert root["Children"][0]["Images"] == ["app:one"]


def test_a_notebook_draws_each_layer_as_large_as_it_is(three: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_ROOT", str(three.root))
    shown = run_verb(["image", "tree"])
    assert isinstance(shown, LayerMap)
    assert "8kB" in repr(shown) and sum(map(total, shown)) == 7500
    drawn = shown._repr_html_()
    svg = ElementTree.fromstring(drawn[drawn.index("<svg") : drawn.index("</svg>") + 6])
    assert {part.tag.rpartition("}")[2] for part in svg.iter()} == {"svg", "g", "rect", "title", "text"}
    assert not [name for part in svg.iter() for name in part.attrib if name.startswith("on") or "href" in name]
    areas = {}
    for group in svg:
        rectangle = group[0]
        title = rectangle[0].text or ""
        areas[title.split()[1] + title.split()[2]] = float(rectangle.get("width", "")) * float(rectangle.get("height", ""))
    assert len(areas) == 4
    for size, part in {"4.0kB": 4000, "2.0kB": 2000, "1.0kB": 1000, "500B": 500}.items():
        assert areas[size] / sum(areas.values()) == pytest.approx(part / 7500, rel=0.02)
    assert "<other>" not in drawn and html.escape("<other>") in drawn


def test_export_and_import_give_the_same_files(engine: Engine, busybox_image: str, tmp_path: Path) -> None:
    sandbox = CommandLine(engine.root)
    sandbox.ok("run", "--name", "made", busybox_image, "sh", "-c", "echo kept > /kept; chown 7:8 /kept; rm /etc/group")
    data = tmp_path / "x.tar"
    sandbox.ok("export", "-o", str(data), "made")
    sandbox.ok("rm", "made")
    sandbox.ok("import", "-c", 'CMD ["sh"]', "-m", "again", str(data), "again:1")
    shown = sandbox.ok("run", "--rm", "again:1", "sh", "-c", "cat /kept; stat -c %u:%g /kept; ls /etc").lines
    assert shown[:2] == ["kept", "7:8"] and "group" not in shown
    assert sandbox.json("inspect", "again:1")[0]["Config"]["Cmd"] == ["sh"]
    assert len(sandbox.json("inspect", "again:1")[0]["RootFS"]["Layers"]) == 1


# Registries


@pytest.fixture
def hub() -> Iterator[BadRegistry]:
    """A registry with Docker Hub's search."""
    results = [
        {"name": "team/web", "description": "Serves " + "x" * 60, "star_count": 30, "is_official": True},
        {"name": "team/other", "star_count": 2, "is_official": False},
    ]
    with bad_registry() as made:
        made.pages["/v1/search"] = json.dumps({"num_results": 2, "results": results}).encode()
        yield made


def test_search_asks_the_registrys_own_search(engine: Engine, hub: BadRegistry) -> None:
    sandbox = CommandLine(engine.root)
    lines = sandbox.ok("search", "--limit", "7", f"{hub.host}/team").lines
    assert lines[1].split() == [f"{hub.host}/team/web", "Serves", "x" * 37 + "…", "30", "[OK]"] and len(lines) == 3
    assert hub.requests("GET", "/v1/search")[0].path == "/v1/search?q=team&n=7"
    assert sandbox.ok("search", "-f", "stars=3", "--format", "{{.Name}}", f"{hub.host}/team").lines == [f"{hub.host}/team/web"]
    assert sandbox.ok("search", "-f", "is-official=false", "--format", "{{.Name}}", f"{hub.host}/team").lines == [f"{hub.host}/team/other"]


def test_search_says_when_a_registry_offers_none(engine: Engine) -> None:
    with bad_registry() as server, pytest.raises(RegistryError, match="offers no search") as told:
        engine.search(f"{server.host}/x", terms=TERMS)
    assert "--list-tags" in (told.value.hint or "")


@pytest.mark.parametrize(("term", "limit"), [("", 25), ("x", 0), ("x", 101)])
def test_what_cannot_be_searched_for_is_an_error(engine: Engine, term: str, limit: int) -> None:
    with pytest.raises(InvalidOption):
        engine.search(term, limit=limit, terms=TERMS)


@pytest.mark.skipif(real_registry.missing() is not None, reason=str(real_registry.missing()))
def test_a_registry_without_search_is_listed(three: Engine, tmp_path: Path) -> None:
    with registry_server(tmp_path / "registry") as server:
        for name in ("team/web:1", "team/web:2", "else/thing:1"):
            three.push("app:one", server.name(name), terms=TERMS)
        assert [found.name for found in three.search(f"{server.host}/WEB", terms=TERMS)] == [server.name("team/web")]
        assert len(three.search(f"{server.host}/", terms=TERMS)) == 2
        assert three.registry_tags(server.name("team/web"), terms=TERMS) == ["1", "2"]
        sandbox = CommandLine(three.root)
        digest = three.pull(server.name("team/web:1"), terms=TERMS)[0].digest
        rows = [line.split() for line in sandbox.ok("images", "--digests", "--format", "{{.Repository}} {{.Digest}}").lines]
        assert [server.name("team/web"), digest] in rows
    assert sandbox.ok("images", "-q", "-f", "until=1h").lines == []
    assert len(sandbox.ok("images", "-q", "-f", f"until={2**33}").lines) == 4
