"""The Sandbox kernel: `python -m kernelspec.kernel KERNELSPEC_DIRECTORY -f CONNECTION_FILE`.

It runs on the host and its cells in a container, by the session runner: so any image with Python, node, bash or sh is a kernel, without
ipykernel in it. Cells of our magics (`%%dockerfile`, `%container ps`) are the host's, as in any notebook with `%load_ext sandbox`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any  # messages

import msgspec
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from traitlets import Unicode

from kernelspec.dialects import Content, completion, inspection
from kernelspec.escapes import plain_python
from kernelspec.inside import Config, Inside, KernelFront
from kernelspec.keeper import Keeper
from kernelspec.notebooks import NotebookImage
from kernelspec.orphans import remove_orphans_meanwhile
from kernelspec.parent import parent_watch
from kernelspec.specs import SANDBOX
from kernelspec.usage import UsageMeter
from magics.magics import SandboxMagics
from magics.output import LiveArea, OutputStreams
from magics.untrusted import Bundle
from magics.verbs import run_verb
from sandbox import Engine
from sandbox.errors import SandboxError, WrongState
from sandbox.session.believed import CellOutcome

_OURS = re.compile(r"%%(?:dockerfile|container|sandbox|install|docker|compose)\b|%(?:dockerfile|container|install|stages|docker)\b")


def is_ours(code: str) -> bool:
    """Whether a cell is made of our magics: its first line is one of our cell magics, or all its lines are line magics of ours."""
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or not _OURS.match(lines[0]):
        return False
    return lines[0].startswith("%%") or "\\" in code or all(_OURS.match(line) for line in lines)


class SandboxKernel(IPythonKernel):
    """ipykernel's kernel, with its shell for our magics and a container for all other cells."""

    implementation = "sandbox"
    inside: Inside
    shell: Any  # ipykernel's own trait, which is never None here

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        app: Any = self.parent
        self.inside, notebook = app.make_inside()
        self.keeper = Keeper(self.inside, app.settings.image, notebook, self._say)
        self._notebook = notebook
        self._meter = UsageMeter()

    # who we are

    @property
    def language_info(self) -> Content:  # type: ignore[override]
        """Of the image's language."""
        return self.inside.language_info

    @property
    def banner(self) -> str:  # type: ignore[override]
        """What a console shows first."""
        environment = self.inside.environment
        return f"{self.inside.dialect.language} in {environment.name} (Sandbox)" if environment else "Sandbox"

    @property
    def kernel_info(self) -> Content:
        """Without ipykernel's debugger and subshells, which would be the host's."""
        return {**super().kernel_info, "supported_features": [], "help_links": []}

    def start(self) -> None:
        """Choose the image, then listen. An image that is not there is told by the first cell."""
        self.inside.find_kept()
        remove_orphans_meanwhile(self.inside.engine)
        try:
            self.keeper.choose_known()
            _ = self.language_info  # looked up here: later another thread may ask
        except SandboxError as err:
            self.log.warning("sandbox: %s", err)
        super().start()

    # cells

    async def do_execute(
        self, code: str, silent: bool, store_history: bool = True, user_expressions: Any = None, allow_stdin: bool = False,
        *, cell_meta: Any = None, cell_id: str | None = None,
    ) -> Content:  # fmt: skip
        """execute_request: by the shell when the cell is of our magics, else inside."""
        if is_ours(code):
            self._load_magics()
            passed = {"cell_meta": cell_meta, "cell_id": cell_id}
            return dict(await super().do_execute(code, silent, store_history, user_expressions, allow_stdin, **passed))
        self._allow_stdin = allow_stdin
        number = self.shell.execution_count
        shown: list[str] = []
        error = self._run_inside(code, silent, number, shown) if code.strip() else None
        if not silent and error:
            self.send_response(self.iopub_socket, "error", error)
        if store_history and not silent:
            self._remember(number, code, shown)
        if not silent:
            self.shell.execution_count += 1
        reply: Content = {"status": "error", **error} if error else {"status": "ok"}
        answered = {} if error else dict.fromkeys(user_expressions or {}, _NOT_EVALUATED)
        return {**reply, "execution_count": number, "payload": [], "user_expressions": answered}

    def _run_inside(self, code: str, silent: bool, number: int, shown: list[str]) -> Content | None:
        """Run a cell in the container; its error as messages have it."""
        try:
            self.keeper.choose()
            with self._front(silent, number, shown) as front, _first_interrupt_only():
                error = self._error_of(self.inside.run(self._plain(code), front))
            if (notice := self.inside.take_notice()) and not silent:
                self._say(notice, {})
            return error
        except SandboxError as err:
            return _error(type(err).__name__, str(err), hint=err.hint)
        except KeyboardInterrupt:
            kept = "" if self.inside.is_warm else "it did not end by that: its container was ended, the next cell starts afresh"
            return _error("KeyboardInterrupt", "", hint=kept)

    @contextlib.contextmanager
    def _front(self, silent: bool, number: int, shown: list[str]) -> Iterator[KernelFront]:
        """A cell's output area; what is `shown` as its result is noted there, as text."""

        def show_result(data: Bundle, metadata: Bundle) -> None:
            shown.append(str(data.get("text/plain", "")))
            if not silent:
                self.send_response(self.iopub_socket, "execute_result", {"execution_count": number, "data": data, "metadata": metadata})

        def ask(prompt: str, password: bool) -> str:
            return self.getpass(prompt) if password else str(self.raw_input(prompt))

        area = _Nothing() if silent else LiveArea(self._publish, self.shell.display_pub.clear_output)
        streams = OutputStreams(area)
        try:
            yield KernelFront(streams, bool(self._allow_stdin), result=show_result, question=ask)
        finally:
            streams.close()
            area.close()

    def _publish(self, data: Bundle, metadata: Bundle, display_id: str | None, update: bool) -> None:
        transient = None if display_id is None else {"display_id": display_id}
        self.shell.display_pub.publish(data=data, metadata=metadata, transient=transient, update=update)

    def _error_of(self, outcome: CellOutcome) -> Content | None:
        """The error an outcome stands for; None when it is a success."""
        if outcome.status == "ok" or (outcome.status == "exit" and outcome.exit_code == 0):
            return None
        if outcome.status == "error":
            name, text = outcome.error
            return {"ename": name, "evalue": text, "traceback": list(outcome.traceback) or [f"{name}: {text}"]}
        if outcome.status == "exit":
            return _error("ExitCode", f"exit code {outcome.exit_code}")
        completed = outcome.completed
        reason = (completed.reason if completed else "") or outcome.error[1] or f"exit code {outcome.exit_code}"
        self.log.warning("sandbox: %s", reason)  # in the server's log
        return _error("ContainerError", reason, hint="the next cell starts afresh, without variables; files are kept")

    def _remember(self, number: int, code: str, shown: Sequence[str]) -> None:
        history = self.shell.history_manager
        history.store_inputs(number, code, code)
        if shown:
            history.output_hist_reprs[number] = shown[-1]
            history.store_output(number)

    # questions between cells

    async def do_complete(self, code: str, cursor_pos: int | None) -> Content:
        """complete_request."""
        cursor = len(code) if cursor_pos is None else cursor_pos
        if code.startswith("%"):
            self._load_magics()
            return dict(super().do_complete(code, cursor))
        return completion(self._ask("complete", code=code[:cursor]), cursor)

    async def do_inspect(self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()) -> Content:
        """inspect_request."""
        if code.startswith("%"):
            self._load_magics()
            return dict(super().do_inspect(code, cursor_pos, detail_level, omit_sections))
        name = self.inside.dialect.name_at(code, cursor_pos)
        return inspection(self._ask("inspect", code=name, detail=detail_level) if name else None)

    async def do_is_complete(self, code: str) -> Content:
        """is_complete_request."""
        if is_ours(code):
            return dict(super().do_is_complete(code))
        return self.inside.dialect.is_complete(self._ask("parse", code=self._plain(code)))

    def _plain(self, code: str) -> str:
        """As the language understands it."""
        return plain_python(code) if self.inside.dialect.language == "python" else code

    async def do_history(self, *args: Any, **kwargs: Any) -> Content:
        """history_request. IPython calls the running session 0 when it is asked for a range of it."""
        reply = super().do_history(*args, **kwargs)
        own = self.shell.history_manager.session_number
        return {**reply, "history": [(number or own, line, text) for number, line, text in reply["history"]]}

    def _ask(self, operation: str, **facts: str | int) -> Any:
        """An answer of the interpreter; None when there is none to be had."""
        shown: list[str] = []
        try:
            if not self.keeper.choose_known():
                return None
            with self._front(False, 0, shown) as front:
                return self.inside.ask(operation, front, **facts)
        except SandboxError as err:  # a cell will say it; a popup is no place for it
            self.log.warning("sandbox: %s", err)
            return None

    # the rest

    def _load_magics(self) -> SandboxMagics:
        """Our extension, in this kernel's own shell; loaded with the first cell that needs it. `{expr}` would be evaluated on the host."""
        from magics.loading import load, loaded

        found = loaded(self.shell)
        if found is None:
            found = load(self.shell)
            found.adapt(on_built=self.keeper.built, verbs={"reset": self._reset, "stats": self._stats}, expressions=False)
        return found

    def _say(self, text: str, metadata: Bundle) -> None:
        self.shell.display_pub.publish(data={"text/plain": text}, metadata=metadata)

    def _reset(self, names: Sequence[str]) -> None:
        """`%container reset kernel`, and sessions by their names."""
        if "kernel" in names:
            self._say(self.keeper.reset(), {})
        if others := [name for name in names if name != "kernel"]:
            self._load_magics().reset_sessions(others)

    def _stats(self, words: Sequence[str]) -> object:
        """`%container stats self`: of the kernel's own container; WrongState when there is none just now."""
        container = self.inside.container if "self" in words else None
        if "self" in words and container is None:
            raise WrongState("stats self: no cell has run yet", wanted="running", actual="not started")
        own = container.id if container is not None else ""
        return run_verb(["stats", *(own if word == "self" else word for word in words)])

    async def usage_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Of the container, where cells run; ipykernel would answer for this process. On the control channel, also while a cell runs."""
        assert self.session is not None  # the application gave it one
        self.session.send(stream, "usage_reply", self._meter.reply(self.inside.container), parent, ident)

    async def do_shutdown(self, restart: bool) -> Content:
        """shutdown_request: nothing is left running. Before a restart the container and its files are kept."""
        if restart:
            self.inside.end()
        else:
            self.inside.close()
            self._notebook.forget()
        self.inside.engine.close()
        return dict(super().do_shutdown(restart))


class SandboxKernelApp(IPKernelApp):
    """Starts the kernel for a kernelspec's directory."""

    name = "sandbox-kernel"
    kernel_class = SandboxKernel
    directory = Unicode("", help="The kernelspec's directory.").tag(config=True)
    settings = Config()

    def make_inside(self) -> tuple[Inside, NotebookImage]:
        """What the kernel runs its cells in, and what its notebook has to say of that."""
        session, connection = os.environ.get("JPY_SESSION_NAME", ""), Path(self.abs_connection_file)
        notebook = Path(session) if session else None
        inside = Inside(Engine(), self.settings, connection=connection, notebook=notebook)
        return inside, NotebookImage(notebook, connection.with_suffix(".environment"))

    def init_kernel(self) -> None:
        """With a history of its own: IPython's is for Python on this host."""
        self.settings = read_config(Path(self.directory))
        if self.settings.root:
            os.environ["SANDBOX_ROOT"] = self.settings.root
        history = Engine().root / "history.sqlite"
        history.parent.mkdir(parents=True, exist_ok=True)
        self.config.HistoryManager.hist_file = str(history)
        super().init_kernel()

    def init_poller(self) -> None:
        """ipykernel's would end this process and leave the container."""
        self.poller = parent_watch(self._end_without_parent)

    def _end_without_parent(self) -> None:
        """In a thread: a cell may be running, and nobody would see its end."""
        self.log.warning("sandbox: the process that started this kernel has ended")
        try:
            self.kernel.inside.abandon()
        finally:
            os._exit(1)

    def init_extensions(self) -> None:
        """Nothing of the person's IPython profile: cells do not run here."""

    def init_code(self) -> None:
        """Nor its start-up files."""

    def init_gui_pylab(self) -> None:
        """Nor plots."""


def read_config(directory: Path) -> Config:
    """The Config of the kernelspec in `directory`; OSError, msgspec.ValidationError."""
    spec = json.loads((directory / "kernel.json").read_text(encoding="utf-8"))
    return msgspec.convert(spec["metadata"][SANDBOX], Config)


_NOT_EVALUATED = {"status": "error", "ename": "NotImplementedError", "evalue": "not in a Sandbox kernel", "traceback": []}


def _error(name: str, text: str, *, hint: str | None = "") -> Content:
    line = f"{name}: {text}" if text else name
    return {"ename": name, "evalue": text, "traceback": [line, *([f"  {hint}"] if hint else [])]}


class _Nothing(LiveArea):
    """The output area of a silent request."""

    def __init__(self) -> None:
        super().__init__(lambda *_: None, lambda _: None)

    def write(self, name: Any, text: str) -> None:
        """Nowhere."""

    def flush(self, name: Any) -> None:
        """Nothing is kept."""


@contextlib.contextmanager
def _first_interrupt_only() -> Iterator[None]:
    """KeyboardInterrupt once: it is passed on to the container, and while that takes effect another one would cut it off."""
    seen = False

    def interrupt(*_: object) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str]) -> None:
    """Run the kernel until it is shut down."""
    SandboxKernelApp.launch_instance([f"--SandboxKernelApp.directory={argv[0]}", *argv[1:]])


if __name__ == "__main__":
    main(sys.argv[1:])
