"""The build cache on disk: what is in it, what a prune takes and what it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.builder import StepDone
from sandbox.build.cachemounts import CacheMounts
from sandbox.build.disk import Choice, cache_uses, parse_filters, prune_cache
from sandbox.errors import InvalidOption
from tests.support.building import Script, Workshop

TEXT = "FROM base AS tools\nRUN make tools\nFROM base\nRUN make app\nCOPY --from=tools /make-tools /t\n"
DAY = 86400.0


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path, Script(lambda *_: 0))
    made.base("base", {"base": "base image"})
    made.build(TEXT, tags=("app",))
    caches = CacheMounts(made.store.root, lambda attempt: None if attempt() else pytest.fail("locked"))
    with caches.hold(("pip", "", "/"), "shared", (0, 0), 0o755) as place:
        (place / "wheel").write_text("x" * 100)
    return made


def test_only_what_no_image_needs_is_build_cache(workshop: Workshop) -> None:
    uses = cache_uses(workshop.store)
    assert sorted((use.kind, use.size) for use in uses) == [("cache mount", 100), ("layer", len("make tools"))]
    assert all(use.used > 0 for use in uses)
    assert [use.description for use in uses if use.kind == "cache mount"] == ["cache mount pip"]


def test_prune_takes_it_and_leaves_the_images(workshop: Workshop) -> None:
    report = prune_cache(workshop.store, set(), Choice())
    assert report.reclaimed == 100 + len("make tools")
    assert cache_uses(workshop.store) == []
    assert list((workshop.store.root / "cache-mounts").iterdir()) == []
    assert workshop.tree(workshop.store.find("app")).read("/t") == b"make tools"
    workshop.build(TEXT)
    assert {event.text: event.cached for event in workshop.events if isinstance(event, StepDone) and event.step > 1} == {
        "RUN make tools": False,
        "RUN make app": True,
        "COPY --from=tools /make-tools /t": True,
    }


def test_all_forgets_the_steps_of_images_too(workshop: Workshop) -> None:
    prune_cache(workshop.store, set(), Choice(everything=True))
    workshop.build(TEXT)
    assert workshop.cached() == [False, False, False]


def test_what_was_used_lately_stays(workshop: Workshop) -> None:
    now = max(use.used for use in cache_uses(workshop.store))
    assert prune_cache(workshop.store, set(), Choice(unused_for=DAY), lambda: now + DAY / 2).removed == ()
    assert len(prune_cache(workshop.store, set(), Choice(unused_for=DAY), lambda: now + 2 * DAY).removed) == 2


def test_as_much_as_may_stay_stays(workshop: Workshop) -> None:
    assert prune_cache(workshop.store, set(), Choice(keep=1000)).removed == ()
    assert len(prune_cache(workshop.store, set(), Choice(keep=1)).removed) == 2


def test_what_a_container_uses_stays(workshop: Workshop) -> None:
    chain = next(use.id for use in cache_uses(workshop.store) if use.kind == "layer")
    assert [use.kind for use in prune_cache(workshop.store, {chain}, Choice()).removed] == ["cache mount"]


def test_filters() -> None:
    assert parse_filters(("until=24h",)) == DAY
    assert parse_filters(()) == 0
    with pytest.raises(InvalidOption, match="only until="):
        parse_filters(("label=x",))
