"""Come to a running container through its supervisor's door (runtime/init/clients), to read what it prints and to type."""

from __future__ import annotations

from contextlib import ExitStack

from sandbox.errors import WrongState
from sandbox.runtime.init import control, link
from sandbox.runtime.running import Running, Streams, Wiring
from sandbox.runtime.spec import ContainerSpec

_STREAMS = ("stdin", "stdout", "stderr")


def attach(directory: str, name: str, spec: ContainerSpec, streams: Streams) -> Running:
    """Attach `streams` to the container of this directory; WrongState when it has no door or ended meanwhile."""
    with ExitStack() as opened:
        try:
            end = opened.enter_context(control.connect(directory))
        except (FileNotFoundError, ConnectionRefusedError) as err:
            raise WrongState(
                f"container {name}: its output goes straight to whoever started it", wanted="running", actual="running",
                hint="only what was started with -d, with -t, or without --rm can be attached to",
            ) from err  # fmt: skip
        wiring = Wiring(streams, opened)
        first = 1 if streams.stdin is None else 0
        ask = {"ask": "attach", "streams": _STREAMS[first:], "keys": streams.detach_keys.hex(), "window": streams.window}
        try:
            link.send(end, ask, wiring.theirs[first:])
        except (BrokenPipeError, ConnectionResetError) as err:
            raise _ended(name) from err
        wiring.close_theirs()
        running = Running(end, wiring, spec.limits, spec.timeout, is_guest=True)
        message, _ = link.receive(end)
        if message is None:
            raise _ended(name)
        if message["event"] == "refused":
            raise WrongState(f"container {name}: {message['message']}", wanted="running", actual="restarting")
        running.pid, running.takes_input = int(message["pid"]), bool(message["stdin"])
        opened.pop_all()
    return running


def _ended(name: str) -> WrongState:
    return WrongState(f"container {name}: ended meanwhile", wanted="running", actual="exited")
