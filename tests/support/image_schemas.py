"""The JSON schemas of the OCI image specification, as Debian packages them, and documents held against them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # 100 ms, wanted by few tests
    import referencing

DIRECTORY = Path("/usr/share/gocode/src/github.com/opencontainers/image-spec/schema")
PACKAGE = "golang-github-opencontainers-image-spec-dev"


def missing() -> str | None:
    """Why nothing can be validated here; None when it can."""
    return None if (DIRECTORY / "config-schema.json").is_file() else f"{PACKAGE}: not installed"


class Schemas:
    """Validates documents; made once a verification. AssertionError when the schemas are not installed."""

    def __init__(self) -> None:
        import referencing

        assert missing() is None, missing()
        self._registry: referencing.Registry[Any] = referencing.Registry(retrieve=_retrieve)  # type: ignore[call-arg]  # attrs

    def faults(self, kind: str, document: object) -> Iterator[str]:
        """What the schema `kind` (config, image-manifest, image-index, image-layout) says against a document."""
        import jsonschema

        schema = _retrieve(f"{kind}-schema.json").contents
        checker = jsonschema.Draft4Validator(schema, registry=self._registry)
        for error in checker.iter_errors(document):
            yield f"{kind} {error.json_path}: {error.message[:200]}"


def _retrieve(uri: str) -> referencing.Resource[Any]:
    """The schemas refer to each other by file name, whatever their ids say."""
    from referencing.jsonschema import DRAFT4

    raw = json.loads((DIRECTORY / uri.rpartition("/")[2]).read_text())
    return DRAFT4.create_resource(_without_ids(raw))


def _without_ids(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_ids(value) for key, value in node.items() if not (key == "id" and isinstance(value, str))}
    return [_without_ids(value) for value in node] if isinstance(node, list) else node
