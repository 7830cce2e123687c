"""Images as cells of the Sandbox kernel run in them."""

from __future__ import annotations

import msgspec

from kernelspec.dialects import Dialect, choose_dialect
from magics.languages import LABEL
from sandbox import Engine
from sandbox.image.store import Image


class Environment(msgspec.Struct, frozen=True):
    """An image as cells run in it: its name as people know it, its language, the program that speaks it."""

    name: str
    image: Image
    dialect: Dialect
    program: str


def look_at(engine: Engine, name: str, language: str) -> Environment:
    """What an image is for cells in `language` (empty: the image decides); ImageNotFound, InvalidOption when no program of it can
    run them."""
    image = engine.image(name)
    config = image.config.value.config
    dialect, program = choose_dialect(
        language,
        label=(config.labels or {}).get(LABEL),
        own=(*(config.entrypoint or ()), *(config.cmd or ())),
        find=lambda each: engine.has_program(image, each),
        image=name,
    )
    return Environment(name, image, dialect, program)
