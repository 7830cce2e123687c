"""Which manifest of an index is for a machine (image-spec image-index.md; variants as containerd orders them)."""

from __future__ import annotations

from collections.abc import Sequence

from sandbox.errors import InvalidOption, NotInRegistry
from sandbox.image.registry.repository import INDEXES, MANIFESTS
from sandbox.oci import Descriptor, Platform, machine

_ARCHITECTURES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm", "armel": "arm", "i386": "386", "i686": "386"}
_VARIANTS = {
    # architecture → variants from the newest; a machine runs its own and all that follow
    "arm": ("v8", "v7", "v6", "v5"),
    "arm64": ("v9", "v8"),
    "amd64": ("v4", "v3", "v2", "v1"),
}
_USUAL = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
"""The variant that is meant when none is said."""


def parse_platform(text: str) -> Platform:
    """`linux/arm64/v8`, `linux/amd64`, `arm64`. InvalidOption."""
    parts = text.lower().split("/")
    if not 1 <= len(parts) <= 3 or not all(part and part.replace("_", "").replace("-", "").isalnum() for part in parts):
        raise InvalidOption(f"platform {text!r}: not of the form OS/ARCHITECTURE[/VARIANT]", hint="such as linux/arm64")
    if len(parts) == 1:
        parts = ["linux", *parts]
    architecture, usual = _ARCHITECTURES.get(parts[1], parts[1]), {"armhf": "v7", "armel": "v6"}.get(parts[1])
    return Platform(architecture, parts[0], variant=parts[2] if len(parts) == 3 else usual)


def this_platform() -> Platform:
    """This machine's. Newer variants of a processor are chosen only by name, as docker does."""
    return Platform(machine(), "linux")


def platform_text(platform: Platform) -> str:
    """`linux/arm64/v8`."""
    return "/".join(filter(None, (platform.os, platform.architecture, platform.variant)))


def fits(offered: Platform, wanted: Platform) -> bool:
    """Whether a machine of the wanted platform runs what is offered."""
    return _rank(offered, wanted) is not None


def _rank(offered: Platform, wanted: Platform) -> int | None:
    """How good an offer is, the lower the better; None: it does not run."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    order = _VARIANTS.get(wanted.architecture)
    usual = _USUAL.get(wanted.architecture)
    mine, theirs = wanted.variant or usual, offered.variant or usual
    if mine == theirs:
        return 0
    if order is None or mine not in order or theirs not in order:
        return None
    distance = order.index(theirs) - order.index(mine)
    return distance if distance > 0 else None


def choose(manifests: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """The best manifest of an index for a platform, the first among equals. NotInRegistry names what there is."""
    images = [found for found in manifests if found.media_type in (*MANIFESTS, *INDEXES) and not _is_attestation(found)]
    ranked = [(rank, place) for place, found in enumerate(images) if (rank := _rank_of(found, wanted)) is not None]
    if ranked:
        return images[min(ranked)[1]]
    offered = sorted({platform_text(found.platform) for found in images if found.platform})
    hint = f"there is {', '.join(offered)}" if offered else None
    raise NotInRegistry(f"{what}: no image for {platform_text(wanted)}", hint=hint)


def _rank_of(found: Descriptor, wanted: Platform) -> int | None:
    if found.platform is None:
        return len(_VARIANTS["arm"]) + 1  # it does not say: better than nothing
    return _rank(found.platform, wanted)


def _is_attestation(found: Descriptor) -> bool:
    """BuildKit lists provenance beside images, for no platform."""
    return found.platform is not None and found.platform.os == "unknown"
