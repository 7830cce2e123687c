"""`build --output`: where a built image goes, in buildx's words (docs.docker.com/build/exporters).

`image` leaves it in the store, where it is anyway; `oci` and `docker` write it as an archive (`tar=false`: as a layout in a
directory); `tar` and `local` write its file system, as an archive or as files of whoever builds. `exporting.py` does it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from sandbox.errors import InvalidOption
from sandbox.image.packing import Packing
from sandbox.image.reference import Reference
from sandbox.oci import MANIFEST_TYPE

if TYPE_CHECKING:
    from sandbox.image.compression import Compression
    from sandbox.image.store import Image

Kind = Literal["image", "oci", "docker", "tar", "local"]

_COMPRESSIONS: dict[str, Compression] = {"uncompressed": "none", "none": "none", "gzip": "gzip", "zstd": "zstd"}
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_COMMON = frozenset({"type"})
_ARCHIVE = _COMMON | {"dest", "name", "tar", "compression", "force-compression", "oci-mediatypes"}
_KEYS: dict[str, frozenset[str]] = {
    "image": _COMMON | {"name", "push", "oci-mediatypes"},
    "oci": _ARCHIVE,
    "docker": _ARCHIVE,
    "tar": _COMMON | {"dest"},
    "local": _COMMON | {"dest"},
}


class Output(msgspec.Struct, frozen=True):
    """One --output. `dest`: a path, `-` for stdout, None for `image`; `names` are added to the build's tags; `directory`: a
    layout in a directory and not an archive."""

    kind: Kind
    dest: str | None = None
    names: tuple[Reference, ...] = ()
    packing: Packing = msgspec.field(default_factory=Packing)
    directory: bool = False


def parse_output(text: str) -> Output:
    """`DIR`, `-` or `type=KIND,key=value…` (CSV); raises InvalidOption."""
    if text == "-":
        return Output("tar", "-")
    if "=" not in text:
        return Output("local", text)
    values = _pairs(text)
    kind = values.get("type")
    if kind not in _KEYS:
        known = ", ".join(_KEYS)
        raise InvalidOption(f"output {text!r}: type {kind!r} is not known" if kind else f"output {text!r}: no type", hint=f"one of {known}")
    if unknown := sorted(set(values) - _KEYS[kind]):
        known = ", ".join(sorted(_KEYS[kind]))
        raise InvalidOption(f"output {text!r}: {unknown[0]} is not supported for type={kind}", hint=f"known: {known}")
    return _output(cast("Kind", kind), values, text)


def _pairs(text: str) -> dict[str, str]:
    """Comma-separated key=value; a field in quotes may hold commas."""
    fields = next(csv.reader([text]), [])
    pairs = [field.partition("=") for field in fields]
    if wrong := next((key for key, equals, _ in pairs if not equals), None):
        raise InvalidOption(f"output {text!r}: {wrong!r} is not of the form key=value")
    return {key.strip().lower(): value for key, _, value in pairs}


def _output(kind: Kind, values: Mapping[str, str], text: str) -> Output:
    if _truth(values, "push", text):
        raise InvalidOption(f"output {text!r}: push is not part of a build", hint="build with -t, then `sandbox push`")
    if not _truth(values, "oci-mediatypes", text, default=True):
        raise InvalidOption(f"output {text!r}: docker's media types are not written", hint="leave out oci-mediatypes=false")
    directory = not _truth(values, "tar", text, default=True)
    dest = values.get("dest")
    if kind in ("tar", "oci") and not dest and not directory:
        dest = "-"
    if (kind == "local" or directory) and dest in (None, "", "-"):
        raise InvalidOption(f"output {text!r}: no directory to write to", hint="add dest=DIR")
    names = tuple(Reference.parse(name) for name in values.get("name", "").split(",") if name)
    return Output(kind, dest or None, names, _packing(values, text), directory)


def _packing(values: Mapping[str, str], text: str) -> Packing:
    name = values.get("compression", "gzip")
    if name not in _COMPRESSIONS:
        raise InvalidOption(f"output {text!r}: compression {name!r} is not supported", hint="one of uncompressed, gzip, zstd")
    return Packing(_COMPRESSIONS[name], force=_truth(values, "force-compression", text))


def _truth(values: Mapping[str, str], key: str, text: str, *, default: bool = False) -> bool:
    value = values.get(key)
    if value is None:
        return default
    if value.lower() not in _TRUTHS:
        raise InvalidOption(f"output {text!r}: {key}={value} is neither true nor false")
    return _TRUTHS[value.lower()]


def check_outputs(outputs: Sequence[Output]) -> None:
    """Refuse, before anything is built, what cannot be written: two archives to stdout, a place that is not there. InvalidOption."""
    if sum(output.dest == "-" for output in outputs) > 1:
        raise InvalidOption("output: two of them go to stdout", hint="give one a file: dest=FILE")
    for output in outputs:
        if output.dest in (None, "-") or output.kind == "local" or output.directory:
            continue
        path = Path(output.dest or "")
        if path.is_dir():
            raise InvalidOption(f"output {path}: a directory", hint="name a file, or write type=local (files) or tar=false (a layout)")
        if not path.absolute().parent.is_dir():
            raise InvalidOption(f"output {path}: no such file or directory", hint="make its directory first")


def metadata_of(image: Image, names: Sequence[Reference]) -> dict[str, object]:
    """What --metadata-file holds, in buildx's words."""
    manifest = image.manifest
    media_type = manifest.value.media_type or MANIFEST_TYPE
    facts: dict[str, object] = {
        "containerimage.config.digest": str(image.id),
        "containerimage.descriptor": {"mediaType": media_type, "digest": str(manifest.digest), "size": len(manifest.raw)},
        "containerimage.digest": str(manifest.digest),
    }
    return {**facts, "image.name": ",".join(str(name) for name in names)} if names else facts
