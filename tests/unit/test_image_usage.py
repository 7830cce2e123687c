"""What images share, what is their own, and what only the build cache holds."""

from __future__ import annotations

from pathlib import Path

from sandbox.image.reference import Reference
from sandbox.image.usage import store_usage
from tests.support.building import Workshop
from tests.support.host import requires

pytestmark = requires("root")


def test_usage_tells_shared_unique_and_cache(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    workshop.base("base", {"f": "x" * 1000})
    workshop.file("a", "a" * 100)
    workshop.file("b", "b" * 10)
    one = workshop.build("FROM base\nCOPY a /a\n", tags=("one",))
    two = workshop.build("FROM base\nCOPY b /b\n", tags=("two",))
    usage = store_usage(workshop.store)
    found = {item.image.id: (item.shared, item.unique, item.size) for item in usage.images}
    assert found[one.id] == (1000, 100, 1100)
    assert found[two.id] == (1000, 10, 1010)
    assert usage.layers == 1110
    assert usage.cache_size == 0
    workshop.store.untag(Reference.parse("one"))
    workshop.store.remove(one.id)
    after = store_usage(workshop.store)
    assert (after.layers, after.cache_size) == (1010, 100)
    assert store_usage(workshop.store, {one.top}).cache_size == 0
    assert after.blobs < usage.blobs
