"""Which image a Sandbox kernel's cells run in, and when that changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any  # metadata of outputs

from kernelspec.environments import Environment
from kernelspec.inside import Inside
from kernelspec.notebooks import Built, NotebookImage
from magics.builds import Composed
from sandbox.errors import ImageError, ImageNotFound, InvalidOption
from sandbox.image.store import Image

DEFAULT_IMAGE = "localhost/python"
"""This machine's Python, for notebooks without a build cell."""
RESET = "%container reset kernel"
Say = Callable[[str, dict[str, Any]], None]


class Keeper:
    """Keeps the image: the kernelspec's `image`, or without one the notebook's own. `say` shows a line, with metadata, in the cell."""

    def __init__(self, inside: Inside, image: str, notebook: NotebookImage, say: Say) -> None:
        self._inside, self._image, self._notebook, self._say = inside, image, notebook, say
        self._next: Environment | None = None

    def choose(self) -> None:
        """Before a cell: there has to be an image. ImageNotFound, InvalidOption when it is not there or cells cannot run in it."""
        if not self.choose_known():
            self._inside.use(self._inside.look_at(self._default()))

    def choose_known(self) -> bool:
        """Choose the image if that takes no work; whether there is one. Raises as `choose`."""
        if self._inside.environment is None:
            if self._image:
                self._inside.use(self._inside.look_at(self._image))
            elif (known := self._notebook.known()) is not None:
                self._use_known(known)
        return self._inside.environment is not None

    def _use_known(self, known: Built) -> None:
        """The image the notebook had; when it is gone, its build cell makes it again."""
        try:
            found = self._inside.look_at(known.digest)
        except ImageError:  # not here, or what the notebook says is no digest
            return
        self._inside.use(Environment(known.name, found.image, found.dialect, found.program))

    def _default(self) -> str:
        if self._notebook.known() is not None:
            raise ImageNotFound("the image of this notebook is not here", hint="run its first %%dockerfile cell")
        try:
            self._inside.engine.image(DEFAULT_IMAGE)
        except ImageNotFound:
            self._say(f"no %%dockerfile cell yet: capturing this machine's Python as {DEFAULT_IMAGE}, once", {})
            self._inside.engine.capture(DEFAULT_IMAGE)
        return DEFAULT_IMAGE

    def built(self, composed: Composed, image: Image, name: str) -> None:
        """A build cell has made an image: when it is the notebook's environment, go on in it; where there is state to lose, offer to."""
        if self._image or not self._notebook.is_environment(composed.key, composed.parent, name):
            return
        digest = str(image.id)
        fact = Built(str(name), digest, composed.key.partition("#")[0])
        try:
            found = self._inside.look_at(digest)
        except InvalidOption as err:
            self._say(f"not the environment of this notebook: {err}", {})
            return
        self._notebook.remember(fact)
        environment = Environment(name, found.image, found.dialect, found.program)
        before = self._inside.environment
        if before is not None and before.image.id == image.id:
            self._next = None
            self._say(f"environment: {_described(environment)}, as before", fact.metadata())
        elif self._inside.has_state:
            self._next = environment
            offer = f"cells go on in the image before, with their variables; restart the kernel, or run {RESET}, to go on in the new one"
            self._say(f"environment: {_described(environment)}\n{offer}", fact.metadata())
        else:
            self._inside.use(environment)
            self._say(f"environment: {_described(environment)}", fact.metadata())

    def reset(self) -> str:
        """Drop the container; the next cell starts a fresh one, of the environment built last. What to tell of it."""
        if self._next is not None:
            self._inside.use(self._next)
            self._next = None
        else:
            self._inside.close()
        environment = self._inside.environment
        return "the kernel's variables and files are gone" + (f"; now {_described(environment)}" if environment else "")


def _described(environment: Environment) -> str:
    digest = str(environment.image.id)
    name = "" if environment.name == digest else f"{environment.name} "
    return f"{name}{digest[: len('sha256:') + 12]}, {environment.dialect.language}"
