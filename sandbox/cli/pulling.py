"""A pull that a verb may need: shown only when there is one, and nothing of it imported before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sandbox.cli.transferring import TransferFace
    from sandbox.image.registry.progress import TransferEvent


class OnDemandFace:
    """The first event opens a face, the last closes it; leaving the context closes it when the pull failed. `make` makes the face
    (None: `transfer_face`)."""

    def __init__(self, make: Callable[[], TransferFace] | None = None) -> None:
        self._make = make
        self._opened = ExitStack()
        self._face: TransferFace | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.close()

    def __call__(self, event: TransferEvent) -> None:
        """Called by the transfer."""
        if self._face is None:
            self._face = self._opened.enter_context((self._make or _usual_face)())
        self._face(event)
        if self._face.view.end:
            self._opened.close()
            self._face = None


def _usual_face() -> TransferFace:
    from sandbox.cli.transferring import transfer_face

    return transfer_face(quiet=False)


def quiet_face() -> TransferFace:
    """Shows warnings only."""
    from sandbox.cli.transferring import transfer_face

    return transfer_face(quiet=True)
