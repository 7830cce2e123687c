"""What the choice of a cell's language needs to know of an image, asked of the engine."""

from __future__ import annotations

from magics.languages import ImageFacts
from sandbox.engine import Engine
from sandbox.image.store import Image


def image_facts(engine: Engine, image: Image, name: str) -> ImageFacts:
    """Entrypoint, command, labels, and a look for programs along the image's PATH."""
    config = image.config.value.config
    return ImageFacts(
        name=name,
        entrypoint=tuple(config.entrypoint or ()),
        command=tuple(config.cmd or ()),
        labels=dict(config.labels or {}),
        find=lambda program: engine.has_program(image, program),
    )
