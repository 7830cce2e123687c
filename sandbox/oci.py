"""Wire types of the OCI image specification v1.1, digests and chain ids.

Bytes and meaning stay side by side in a `Document`: a digest is always over the bytes received, never over
re-encoded JSON.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from sandbox.decoders import Decoder, FirstUse
from sandbox.errors import InvalidImage
from sandbox.hashing import sha256_hex
from sandbox.patterns import Pattern

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
# docker's own, from before (docs.docker.com "image manifest v2, schema 2"): the same documents under other names.
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

_DIGEST = Pattern(r"sha256:[0-9a-f]{64}")


class Digest(str):
    """`sha256:<64 hex>`; made by `Digest.of` and `Digest.parse` only."""

    __slots__ = ()

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of these bytes."""
        return cls("sha256:" + sha256_hex(data))

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Check and take a digest from outside; raises InvalidImage."""
        if not _DIGEST.fullmatch(text):
            raise InvalidImage(f"digest {text!r}: not of the form sha256:<64 hex digits>")
        return cls(text)

    @property
    def hex(self) -> str:
        """The 64 hex digits."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first 12 hex digits, as docker prints ids."""
        return self[7:19]


def chain_ids(diff_ids: Sequence[str]) -> list[Digest]:
    """The chain id of each prefix of a layer stack (image-spec config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else Digest.parse(diff_id))
    return chain


class Platform(msgspec.Struct, omit_defaults=True):
    """image-spec descriptor.md / image-index.md `platform`."""

    architecture: str
    os: str
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: list[str] | None = msgspec.field(default=None, name="os.features")
    variant: str | None = None


class Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    """image-spec descriptor.md: what a blob is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


_OCI_LAYERS = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}


def oci_layer(layer: Descriptor) -> Descriptor:
    """The same layer by OCI's name of its kind: an OCI manifest lists no others."""
    return msgspec.structs.replace(layer, media_type=_OCI_LAYERS.get(layer.media_type, layer.media_type))


class Manifest(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """image-spec manifest.md."""

    schema_version: int
    media_type: str | None = None
    config: Descriptor
    layers: list[Descriptor]
    annotations: dict[str, str] | None = None


class Index(msgspec.Struct, rename="camel", kw_only=True, omit_defaults=True):
    """image-spec image-index.md."""

    schema_version: int
    media_type: str | None = None
    manifests: list[Descriptor]
    annotations: dict[str, str] | None = None


class Healthcheck(msgspec.Struct, rename="pascal", omit_defaults=True):
    """docker's image config extension; durations in nanoseconds. Test[0] is NONE, CMD or CMD-SHELL."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def machine() -> str:
    """This machine's processor, as OCI (Go) calls it."""
    name = os.uname().machine
    return _MACHINES.get(name, name)


class RunConfig(msgspec.Struct, omit_defaults=True):
    """image-spec config.md `config`: what a container of the image runs by default. None means not set."""

    user: str = msgspec.field(default="", name="User")
    exposed_ports: dict[str, dict[str, str]] | None = msgspec.field(default=None, name="ExposedPorts")
    env: list[str] | None = msgspec.field(default=None, name="Env")
    entrypoint: list[str] | None = msgspec.field(default=None, name="Entrypoint")
    cmd: list[str] | None = msgspec.field(default=None, name="Cmd")
    volumes: dict[str, dict[str, str]] | None = msgspec.field(default=None, name="Volumes")
    working_dir: str = msgspec.field(default="", name="WorkingDir")
    labels: dict[str, str] | None = msgspec.field(default=None, name="Labels")
    stop_signal: str = msgspec.field(default="", name="StopSignal")
    healthcheck: Healthcheck | None = msgspec.field(default=None, name="Healthcheck")
    shell: list[str] | None = msgspec.field(default=None, name="Shell")
    on_build: list[str] | None = msgspec.field(default=None, name="OnBuild")
    args_escaped: bool = msgspec.field(default=False, name="ArgsEscaped")


class RootFS(msgspec.Struct):
    """image-spec config.md `rootfs`."""

    type: str
    diff_ids: list[str]


class History(msgspec.Struct, omit_defaults=True):
    """image-spec config.md `history`: one entry an instruction; `empty_layer` when it made no layer."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """image-spec config.md. Its digest is the image id."""

    created: str | None = None
    author: str | None = None
    architecture: str
    os: str
    variant: str | None = None
    config: RunConfig = msgspec.field(default_factory=RunConfig)
    rootfs: RootFS
    history: list[History] = msgspec.field(default_factory=list)
    cache: str | None = msgspec.field(default=None, name="sandbox.cache.v1")
    """What `--cache-to type=inline` keeps: the steps that led to the layers (sandbox.build.cachesources)."""


def whole_history(config: ImageConfig) -> list[History]:
    """The history with one entry a layer that it does not tell of, as BuildKit adds them: what is built on top then fits its layers."""
    told = sum(not step.empty_layer for step in config.history)
    return [*config.history, *(History(comment="not told by the base image") for _ in config.rootfs.diff_ids[told:])]


T = TypeVar("T")


class Document(msgspec.Struct, Generic[T], frozen=True):
    """A JSON document of a specification: the bytes as received or first written, their meaning, their digest."""

    raw: bytes
    value: T
    digest: Digest


_DECODERS: dict[type, Decoder[Any]] = {kind: Decoder(kind) for kind in (Manifest, Index, ImageConfig)}


def _as_text(value: object) -> str:
    """msgspec refuses subclasses of str."""
    if isinstance(value, Digest):
        return str(value)
    raise TypeError(f"{type(value).__name__}: not a JSON value")


_ENCODER = msgspec.json.Encoder(enc_hook=_as_text)


def _encode_all() -> None:
    config = RunConfig(healthcheck=Healthcheck())
    _ENCODER.encode(ImageConfig(architecture="", os="", rootfs=RootFS("layers", []), config=config, history=[History()]))
    _ENCODER.encode(Index(schema_version=2, manifests=[Descriptor("", "", 0, platform=Platform("", ""))]))
    _ENCODER.encode(Manifest(schema_version=2, config=Descriptor("", "", 0), layers=[]))


_first_use = FirstUse(_encode_all)


def decode(kind: type[T], raw: bytes) -> Document[T]:
    """Parse and check a document; raises InvalidImage that says which field is wrong."""
    try:
        value: T = _DECODERS[kind].decode(raw)
    except msgspec.DecodeError as err:
        raise InvalidImage(f"{kind.__name__.lower()}: {err}") from err
    return Document(raw, value, Digest.of(raw))


def encode(value: T) -> Document[T]:
    """Write a document for the first time."""
    _first_use()
    raw = _ENCODER.encode(value)
    return Document(raw, value, Digest.of(raw))
