"""The host's half of a runner: `Interpreter` runs cells in one, alive as long as its container."""

from __future__ import annotations

import time
from collections.abc import Callable
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket, socketpair
from typing import Any, Protocol
from uuid import uuid4

from msgspec.structs import replace

from sandbox.errors import InvalidInput
from sandbox.runtime.running import Running, Stream
from sandbox.runtime.spec import Completed, Usage
from sandbox.session.believed import (
    LONGEST_PROMPT,
    MOST_DISPLAYS,
    Allowance,
    CellCode,
    CellOutcome,
    bundle_of,
    decoded,
    outcome_of,
    text_of,
)
from sandbox.session.channel import Channel, Frame
from sandbox.session.inside.sandbox_runner import objects
from sandbox.session.inside.sandbox_runner.frames import NotPossible
from sandbox.session.runners import PYTHON, Runner

_INTERRUPTS = 5
_PATIENCE = (1.0, 2.0)
"""Seconds between the interrupts of a cell that does not end, and those a runner has to end after its last cell."""
_START_SECONDS = 30.0
_BETWEEN_CLEARS = 0.02
_NO_MORE = f"… more than {MOST_DISPLAYS} displays, or 100 MB of them: the others are not shown\n".encode()


class Front(Protocol):
    """Who shows what a cell gives."""

    def write(self, stream: Stream, data: bytes) -> None:
        """Show what it printed."""

    def display(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Show a MIME bundle; it is untrusted."""

    def show_result(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Show the MIME bundle of the cell's last expression; it is untrusted."""

    def display_as(self, data: dict[str, Any], metadata: dict[str, Any], display_id: str, *, update: bool) -> None:
        """Show a bundle that may change later, or with `update` in the place of the one that has this id; it is untrusted."""

    def clear(self, *, wait: bool) -> None:
        """Clear what the cell has shown; with `wait` as soon as something new is there."""

    def ask(self, prompt: str, password: bool) -> str | None:
        """Ask the person; None when nobody can be asked."""


def start(runner: Runner, launch: Callable[[int], tuple[Running, str, Callable[[], Usage]]]) -> Interpreter:
    """An interpreter in what `launch` starts: it is given the descriptor of the runner's channel, and gives the running container, its id,
    and how to ask what it uses."""
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        with theirs:
            running, container_id, measure = launch(theirs.fileno())
    except BaseException:
        ours.close()
        raise
    return Interpreter(running, ours, runner, measure, container_id)


class Interpreter:
    """One runner, alive as long as its container runs. `close` ends both."""

    def __init__(
        self, running: Running, end: socket, runner: Runner = PYTHON, measure: Callable[[], Usage] = Usage, container_id: str = ""
    ) -> None:
        self.container_id = container_id
        self._is_closed = False
        self._ended_for = ""
        self._running = running
        self._measure = measure
        self._used = 0.0
        self._runner = runner
        self._channel = Channel(end, self._take, runner.encode)
        self._front: Front | None = None
        self._ready: Frame | None = None
        self._done: tuple[Frame, list[memoryview]] | None = None
        self._reply: tuple[Frame, list[memoryview]] | None = None
        self._allowance = Allowance()
        self._ids = uuid4().hex
        self._began = time.monotonic()
        running.attend(self._channel.fileno(), self._read)

    @property
    def refused(self) -> Completed | None:
        """The result when the interpreter could not be started (126, 127)."""
        return self._running.refused

    @property
    def alive(self) -> bool:
        """Whether another cell may be tried."""
        return not self._channel.broken and not self._running.ended

    def close(self) -> None:
        """End the interpreter and its container."""
        self._is_closed = True
        self._running.end()
        self._channel.close()

    def close_ended(self, front: Front) -> str:
        """Close it after it has ended. Why it did; empty when that is not known, or when a cell has told it."""
        done = None if self._is_closed else self._end(front)
        return done.reason if done is not None else self._ended_for

    def forget(self) -> None:
        """A fresh namespace."""
        self._channel.send({"op": "reset"})

    def settle(self, front: Front) -> bool:
        """Look whether it ended meanwhile, and show what its threads printed and displayed; whether another cell may be tried."""
        if self.alive:
            self._front, self._allowance = front, Allowance()
            try:
                self._running.serve(front.write, lambda: False, timeout=0)
            finally:
                self._front = None
        return self.alive

    def ask(self, operation: str, front: Front, *, timeout: float, **facts: str | int) -> tuple[Frame, list[memoryview]] | None:
        """Put a question (complete, inspect, parse) to an idle runner; None when it does not answer within `timeout` seconds."""
        self._reply = None
        self._channel.send({"op": operation, **facts})
        self._running.serve(front.write, lambda: self._reply is not None or bool(self._channel.broken), timeout=timeout)
        if self._reply is None and self.alive:
            self._stop()
            self._running.serve(front.write, lambda: self._reply is not None or bool(self._channel.broken), timeout=_PATIENCE[0])
        return self._reply

    def run(self, cell: CellCode, front: Front, *, keep: bool, timeout: float | None = None) -> CellOutcome:
        """Run one cell; without `keep` it is the last, and the outcome knows how the container ended. After `timeout` seconds
        it is interrupted.

        KeyboardInterrupt: raised in the cell too; the interpreter and its variables stay, unless it does not listen.
        Raises InvalidInput for an input that cannot travel.
        """
        if (cell.inputs or cell.outputs) and not self._runner.objects:
            raise InvalidInput(f"--in, --out-var: not for {self._runner.name}", hint="files in a volume can be read by both sides")
        self._front, self._done, self._allowance, self._began = front, None, Allowance(), time.monotonic()
        try:
            with self._channel.interrupts:
                self._send(cell, front, keep)
                if self._running.serve(front.write, self._is_over, timeout=timeout) or not self.alive:
                    return self._outcome(cell, front, keep)
            self._interrupt(front, keep)
            return CellOutcome("timeout", 124, seconds=timeout or 0.0, usage=self._usage(timeout or 0.0))
        except KeyboardInterrupt:
            self._interrupt(front, keep)
            raise
        except InvalidInput:  # nothing was sent: it waits for another cell
            if not keep:
                self.close()
            raise
        except BaseException:  # the front end's own error: what the runner says next would belong to another cell
            self.close()
            raise
        finally:
            self._front = None

    def _send(self, cell: CellCode, front: Front, keep: bool) -> None:
        described, buffers = [], list[bytes | memoryview]()
        libraries = self._libraries(front) if cell.inputs or cell.outputs else []
        arrow = "pyarrow" in libraries and "pyarrow" in objects.libraries()
        for name, value in cell.inputs.items():
            about, given = _encoded(name, value, arrow, cell.pickle)
            described.append({**about, "name": name, "first": len(buffers), "count": len(given)})
            buffers += given
        asked = {"in": described, "out": list(cell.outputs), "arrow": arrow, "trust": cell.trust, "keep": keep}
        self._channel.takes_values = bool(cell.outputs)
        self._channel.send({"op": "run", "code": cell.code, "first_line": cell.first_line, **asked}, buffers)

    def _libraries(self, front: Front) -> list[str]:
        """What the image's Python has for objects; empty when the runner does not come up."""
        if self._ready is None:
            self._channel.send({"op": "libraries"})
        self._running.serve(front.write, lambda: self._ready is not None or bool(self._channel.broken), timeout=_START_SECONDS)
        found = (self._ready or {}).get("names")
        return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []

    def _is_over(self) -> bool:
        return self._done is not None or bool(self._channel.broken)

    def _read(self) -> None:
        self._channel.read()
        if self._channel.broken:
            self._running.unattend(self._channel.fileno())

    def _take(self, message: Frame, buffers: list[memoryview]) -> None:
        """One frame of the runner."""
        operation = _TAKE.get(message["op"])
        if operation is not None:
            operation(self, message, buffers)

    def _take_libraries(self, message: Frame, buffers: list[memoryview]) -> None:
        self._ready = message

    def _take_done(self, message: Frame, buffers: list[memoryview]) -> None:
        self._done = (message, buffers)

    def _take_reply(self, message: Frame, buffers: list[memoryview]) -> None:
        self._reply = (message, buffers)

    def _take_sync(self, message: Frame, buffers: list[memoryview]) -> None:
        if self._front is not None:
            self._running.drain(self._front.write)
        self._answer(message)

    def _take_display(self, message: Frame, buffers: list[memoryview]) -> None:
        data, metadata = bundle_of(message, buffers), message.get("metadata")
        was_used_up = self._allowance.is_used_up
        may = self._allowance.take(data, update=message.get("update") is True)
        if self._front is not None and not was_used_up:
            self._running.drain(self._front.write)
            if may:
                self._show(self._front, message, data, metadata if isinstance(metadata, dict) else {})
            else:
                self._front.write("stderr", _NO_MORE)
        self._answer(message, enough=not may)

    def _show(self, front: Front, message: Frame, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        name = message.get("display_id")
        if isinstance(name, str):  # its ids are its own: it may not reach what others have shown
            front.display_as(data, metadata, f"{self._ids}-{name[:64]}", update=message.get("update") is True)
        elif message.get("result") is True:
            front.show_result(data, metadata)
        else:
            front.display(data, metadata)

    def _take_clear(self, message: Frame, buffers: list[memoryview]) -> None:
        if self._front is not None:
            self._running.drain(self._front.write)
            self._front.clear(wait=message.get("wait") is True)
            self._allowance.clear()
            time.sleep(_BETWEEN_CLEARS)  # the cell waits for the answer: what it draws over and over does not flood the browser
        self._answer(message)

    def _take_input(self, message: Frame, buffers: list[memoryview]) -> None:
        text = None
        prompt = text_of(decoded(buffers[0]) if buffers else message.get("prompt"), LONGEST_PROMPT)
        if self._front is not None:
            self._running.drain(self._front.write)
            text = self._front.ask(prompt, bool(message.get("password")))
        self._answer(message, **({} if text is None else {"text": text}))

    def _answer(self, message: Frame, **facts: object) -> None:
        number = message.get("id")
        self._channel.send({"op": "answer", "id": number if type(number) is int and abs(number) < 1 << 53 else 0, **facts})

    def _interrupt(self, front: Front, keep: bool) -> None:
        """KeyboardInterrupt inside; whoever does not end by that is ended."""
        sent = False
        for _ in range(_INTERRUPTS):  # os.system ignores the first while its child takes it
            if self._is_over() or self._running.ended:
                break
            self._stop()
            sent = True
            self._running.serve(front.write, self._is_over, timeout=_PATIENCE[0])
        if self._done is None or not keep or (sent and self._runner.signalled and not self._is_quiet(front)):
            if not self._running.ended:
                self._ended_for = self._channel.broken or "did not end when it was interrupted"
            self._end(front)

    def _is_quiet(self, front: Front) -> bool:
        """Have a runner that is signalled take what signals are still on their way: the next cell must not get them. Whether it answers."""
        self._reply = None
        for _ in range(_INTERRUPTS):  # a shell loses a line that a signal cuts
            self._channel.send({"op": "settle"})
            self._running.serve(front.write, lambda: self._reply is not None or bool(self._channel.broken), timeout=1.0)
            if self._reply is not None or not self.alive:
                break
        return self._reply is not None

    def _stop(self) -> None:
        """SIGINT to the runner and what its cell has started."""
        if self._runner.signalled:
            self._running.interrupt_group()
        else:
            self._channel.send({"op": "interrupt"})

    def _end(self, front: Front) -> Completed | None:
        """Wait shortly for the container's own end, then end it."""
        self._running.serve(front.write, lambda: False, timeout=_PATIENCE[1])
        done = self._running.wait(front.write) if self._running.ended else None
        self.close()
        return done

    def _outcome(self, cell: CellCode, front: Front, keep: bool) -> CellOutcome:
        self._running.drain(front.write)
        if self._done is None:
            return self._died(front)
        message, buffers = self._done
        outcome = outcome_of(message, buffers, cell, elapsed=time.monotonic() - self._began)
        if message.get("last") is True:  # the cell ended the interpreter
            self._end(front)
        if keep:
            return replace(outcome, usage=self._usage(outcome.seconds))
        completed = self._wait_end(front)
        return replace(outcome, completed=completed)

    def _usage(self, seconds: float) -> Usage:
        """What the cell has used."""
        now = self._measure()
        cpu, self._used = None if now.cpu is None else max(0.0, now.cpu - self._used), now.cpu or 0.0
        return replace(now, wall=seconds, cpu=cpu)

    def _wait_end(self, front: Front) -> Completed:
        """Threads of the cell's that are no daemons go on after its last line, as in any program."""
        try:
            return self._running.wait(front.write)
        finally:
            self.close()

    def _died(self, front: Front) -> CellOutcome:
        """Without an answer: the container ended, or the channel did and the container has to."""
        reason, completed = self._channel.broken, self._end(front)
        lines = () if completed else (reason,)
        return CellOutcome("died", completed.exit_code if completed else 137, ("", reason), lines, completed=completed)


_TAKE: dict[str, Callable[[Interpreter, Frame, list[memoryview]], None]] = {
    "libraries": Interpreter._take_libraries,
    "done": Interpreter._take_done,
    "reply": Interpreter._take_reply,
    "sync": Interpreter._take_sync,
    "display": Interpreter._take_display,
    "clear": Interpreter._take_clear,
    "input": Interpreter._take_input,
}


def _encoded(name: str, value: object, arrow: bool, pickled: bool) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    try:
        about, buffers = objects.encode(value, arrow, pickled)
    except NotPossible as err:
        hint = None if pickled else "hand in a part of it, or --pickle if both sides have its class"
        raise InvalidInput(f"--in {name}: {err}", hint=hint) from err
    return about, buffers
