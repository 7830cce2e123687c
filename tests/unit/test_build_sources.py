"""--cache-to and --cache-from: an engine that knows nothing takes the steps another one made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.build.builder import StepDone
from sandbox.build.cachesources import CacheSpec, parse_cache
from sandbox.build.settings import Settings
from sandbox.errors import InvalidImage, InvalidOption, SandboxError
from sandbox.image.layout import write_layout
from sandbox.image.loading import load_layout
from sandbox.image.reference import Reference
from tests.support.building import Script, Workshop

TEXT = """FROM base AS tools
RUN make tools
FROM base
ENV A=1
RUN make app
COPY f /f
COPY --from=tools /make-tools /t
"""


def workshop_in(place: Path, done: list[str]) -> Workshop:
    made = Workshop(place, Script(lambda command, _: done.append(command) or 0))  # type: ignore[func-returns-value]
    made.base("base", {"base": "base image"})
    made.file("f", "content")
    return made


def cached(workshop: Workshop) -> dict[str, bool]:
    return {event.text: event.cached for event in workshop.events if isinstance(event, StepDone)}


@pytest.mark.parametrize("every_stage", [False, True], ids=["min", "max"])
def test_a_cold_engine_takes_the_steps_of_a_local_cache(tmp_path: Path, every_stage: bool) -> None:
    done: list[str] = []
    cache = tmp_path / "cache"
    first = workshop_in(tmp_path / "one", done).build(TEXT, settings=Settings(cache_to=(CacheSpec("local", str(cache), every_stage),)))
    done.clear()
    cold = workshop_in(tmp_path / "two", done)
    second = cold.build(TEXT, settings=Settings(cache_from=(CacheSpec("local", str(cache)),)))
    assert second.manifest.digest == first.manifest.digest
    assert done == ([] if every_stage else ["make tools"])
    assert cached(cold)["RUN make app"]
    assert cached(cold)["COPY f /f"]
    assert cold.tree(second).read("/t") == b"make tools"
    cold.build(TEXT)
    assert all(cached(cold).values())


def test_exported_cache_is_a_layout_and_the_same_for_the_same_build(tmp_path: Path) -> None:
    spec = Settings(cache_to=(CacheSpec("local", str(tmp_path / "cache"), True),))
    workshop = workshop_in(tmp_path / "one", [])
    workshop.build(TEXT)
    workshop.build(TEXT, settings=spec)
    files = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    workshop.build(TEXT, settings=spec)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()} == files
    assert json.loads((tmp_path / "cache/oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_changed_file_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    workshop_in(tmp_path / "one", []).build(TEXT, settings=Settings(cache_to=(CacheSpec("local", str(tmp_path / "cache"), True),)))
    cold = workshop_in(tmp_path / "two", [])
    cold.file("f", "other")
    cold.build(TEXT, settings=Settings(cache_from=(CacheSpec("local", str(tmp_path / "cache")),)))
    assert cached(cold)["RUN make app"]
    assert not cached(cold)["COPY f /f"]


def test_damaged_layer_of_a_cache_is_refused(tmp_path: Path) -> None:
    workshop_in(tmp_path / "one", []).build(TEXT, settings=Settings(cache_to=(CacheSpec("local", str(tmp_path / "cache"), True),)))
    for blob in (tmp_path / "cache/blobs/sha256").iterdir():
        data = blob.read_bytes()
        if not data.startswith(b"{"):
            blob.write_bytes(data.replace(b"make app", b"make bad").replace(b"content", b"evil!!!"))
    cold = workshop_in(tmp_path / "two", [])
    with pytest.raises(SandboxError, match=r"sha256|digest"):
        cold.build(TEXT, settings=Settings(cache_from=(CacheSpec("local", str(tmp_path / "cache")),)))


def test_inline_cache_travels_in_the_image(tmp_path: Path) -> None:
    done: list[str] = []
    one = workshop_in(tmp_path / "one", done)
    image = one.build(TEXT, tags=("app",), settings=Settings(cache_to=(CacheSpec("inline"),)))
    write_layout(one.store, [(Reference.parse("app"), image)], tmp_path / "layout")
    done.clear()
    cold = workshop_in(tmp_path / "two", done)
    load_layout(cold.store, tmp_path / "layout")
    cold.build(TEXT, settings=Settings(cache_from=(CacheSpec("registry", "app"),)))
    assert done == ["make tools"]
    assert cached(cold)["RUN make app"]


def test_place_without_a_cache_says_so(tmp_path: Path) -> None:
    workshop = workshop_in(tmp_path / "one", [])
    with pytest.raises(InvalidImage, match="no cache in it"):
        workshop.build(TEXT, settings=Settings(cache_from=(CacheSpec("local", str(tmp_path)),)))


@pytest.mark.parametrize(
    ("text", "flag", "expected"),
    [
        ("type=local,dest=d", "--cache-to", CacheSpec("local", "d")),
        ("type=local,dest=d,mode=max", "--cache-to", CacheSpec("local", "d", every_stage=True)),
        ("type=inline", "--cache-to", CacheSpec("inline")),
        ("type=local,src=d", "--cache-from", CacheSpec("local", "d")),
        ("app:1", "--cache-from", CacheSpec("registry", "app:1")),
        ("type=registry,ref=app:1", "--cache-from", CacheSpec("registry", "app:1")),
        ("type=registry,ref=app:1,mode=max", "--cache-to", CacheSpec("registry", "app:1", every_stage=True)),
        ("app:1", "--cache-to", CacheSpec("registry", "app:1")),
    ],
)
def test_specs(text: str, flag: str, expected: CacheSpec) -> None:
    assert parse_cache(text, flag) == expected


@pytest.mark.parametrize(
    ("text", "flag", "error"),
    [
        ("type=local", "--cache-to", InvalidOption),
        ("type=gha", "--cache-to", InvalidOption),
        ("type=local,dest=d,mode=most", "--cache-to", InvalidOption),
        ("type=inline", "--cache-from", InvalidOption),
        ("type=registry", "--cache-to", InvalidOption),
    ],
)
def test_specs_that_are_refused(text: str, flag: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_cache(text, flag)
