"""`--bg`: what a cell in the background leaves in `_`: a handle that shows how it stands whenever it is shown."""

from __future__ import annotations

import contextvars
import html
import threading
from datetime import UTC, datetime
from uuid import uuid4

from magics.display import Bundle, Publish
from sandbox.engine import Completed, Container
from sandbox.errors import ContainerError
from sandbox.runtime.spec import Usage

_TAIL = 5
_INTERVAL = 1.0
"""Seconds between looks at a container that is shown live."""


class Handle:
    """A container in the background. Shown, it says how it stands and the last it printed; `live`: for as long as it runs."""

    def __init__(self, container: Container, publish: Publish, *, live: bool) -> None:
        self.container = container
        self.name = container.name
        self._publish = publish
        self._live = live

    @property
    def status(self) -> str:
        """running, paused, restarting, exited or removed."""
        status = self.container.status
        return "removed" if status == "created" else status  # it was started before it became a handle

    @property
    def completed(self) -> Completed | None:
        """How it ended; None before that, and once it is removed."""
        return self.container.completed

    @property
    def usage(self) -> Usage:
        """What it has used until now, or in all."""
        done = self.completed
        return done.usage if done else self.container.usage()

    def logs(self, tail: int | None = None) -> str:
        """What it printed until now."""
        return b"".join(line.data for line in self.container.logs(tail=tail)).decode(errors="replace")

    def wait(self, timeout: float | None = None) -> Completed:
        """Until it has ended; TimeoutError after `timeout` seconds."""
        return self.container.wait(timeout)

    def stop(self, timeout: float | None = None) -> None:
        """End it: its stop signal and, `timeout` seconds later (None: its --stop-timeout), SIGKILL."""
        self.container.stop(timeout)

    def remove(self) -> None:
        """End and remove it."""
        self.container.remove(force=True)

    def __repr__(self) -> str:
        lines = [f"{self.name}: {self._standing()}", *self._last_lines()]
        if self.status == "running":
            lines.append(f"%container logs {self.name} · %container stop {self.name}")
        return "\n".join(lines)

    def _ipython_display_(self) -> None:
        """Called by IPython's display hook."""
        if not self._live:
            self._publish(self._bundle(), {}, None, False)
            return
        display_id = uuid4().hex
        shown = self._bundle()
        self._publish(shown, {}, display_id, False)
        # The front end finds the cell of an output by a context variable: the thread needs this one's.
        context = contextvars.copy_context()
        watch = (self._follow, self._publish, display_id, shown)
        threading.Thread(target=context.run, args=watch, name=f"handle-{self.name}", daemon=True).start()

    def _follow(self, publish: Publish, display_id: str, shown: Bundle) -> None:
        """Show it anew whenever it changed, until it has ended."""
        running = True
        while running:
            running = not self._has_ended(_INTERVAL)
            now = self._bundle()
            if now != shown:
                publish(now, {}, display_id, True)
                shown = now

    def _has_ended(self, timeout: float) -> bool:
        try:
            self.container.wait(timeout)
        except TimeoutError:
            return False
        except ContainerError:  # removed meanwhile
            return True
        return True

    def _bundle(self) -> Bundle:
        return {"text/plain": repr(self), "text/html": self._html()}

    def _html(self) -> str:
        head, *rest = repr(self).split("\n")
        lines = "".join(f'<div style="color:var(--jp-content-font-color2,#777)">{html.escape(line)}</div>' for line in rest)
        style = "font-family:var(--jp-code-font-family,monospace);font-size:90%"
        return f'<div class="sandbox-handle" style="{style}"><div>{html.escape(head)}</div>{lines}</div>'

    def _standing(self) -> str:
        if self.status == "removed":
            return "removed"
        standing = self.container.describe_status(datetime.now(UTC))
        done = self.container.completed
        return f"{standing} · {done.reason}" if done and done.reason else standing

    def _last_lines(self) -> list[str]:
        return [line for line in self.logs(tail=_TAIL).split("\n") if line.strip()]
