"""Hooks of the OCI runtime specification: programs that run at a point of a container's life, with its state on stdin."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class HookFailed(Exception):
    """A hook ended with an error or was too slow; the message has what it printed."""


def run(hooks: Sequence[Mapping[str, Any]], state: Mapping[str, Any], pid: int) -> None:
    """Run each hook in order with the container's state (runtime.md, State) on its stdin; HookFailed at the first that fails."""
    if not hooks:
        return
    import subprocess  # costs milliseconds; in a container `prepare` did it before the root changed

    text = json.dumps({**state, "pid": pid}).encode()
    for hook in hooks:
        argv = list(hook["args"]) or [hook["path"]]
        env = dict(entry.partition("=")[::2] for entry in hook["env"])
        try:
            done = subprocess.run(
                argv, executable=hook["path"], env=env, input=text, capture_output=True, timeout=hook["timeout"], check=False
            )
        except subprocess.TimeoutExpired as err:
            raise HookFailed(f"hook {hook['path']}: ran longer than {hook['timeout']} s") from err
        except OSError as err:
            raise HookFailed(f"hook {hook['path']}: {err.strerror}") from err
        if done.returncode:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise HookFailed(f"hook {hook['path']}: ended with {done.returncode}: {said}")


def prepare(hooks: Sequence[Mapping[str, Any]]) -> None:
    """Import what `run` needs, for a process that soon cannot import any more."""
    if hooks:
        import subprocess  # noqa: F401
