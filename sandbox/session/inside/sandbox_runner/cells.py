"""Runs cells one after the other in one namespace, as a notebook does."""

import _ast  # and not ast, getpass, signal, threading, traceback, types: importing them would cost each fresh cell 20 ms
import _thread
import builtins
import os
import sys
import time

from .bundles import BACKEND, TOO_LARGE, Backend, as_json, bundle_of, fitting, png_of
from .frames import Channel, NotPossible, TooLarge, signal
from .standin import Finder, Screen

Module = type(sys)


class Stream:
    """sys.stdout or sys.stderr: unbuffered, and in order with the other one and with what is displayed."""

    def __init__(self, runner, name, fd):
        self._runner, self.name, self._fd = runner, "<%s>" % name, fd
        self.encoding, self.errors, self.closed = "utf-8", "backslashreplace", False
        self.buffer = open(fd, "wb", buffering=0, closefd=False)

    def write(self, text):
        """Write text; the number of its characters."""
        if not isinstance(text, str):
            raise TypeError("write() argument must be str, not " + type(text).__name__)
        runner, fd = self._runner, self._fd
        if fd != runner.printed_to:
            runner.turn_to(fd)
        data = text.encode("utf-8", "backslashreplace")
        count = os.write(fd, data)
        while count < len(data):
            count += os.write(fd, data[count : count + _PIPE])
        return len(text)

    def writelines(self, lines):
        """Write all of them."""
        for line in lines:
            self.write(line)

    def flush(self):
        """Nothing is kept back."""

    def fileno(self):
        """The descriptor children inherit."""
        return self._fd

    def isatty(self):
        """It is a pipe."""
        return False

    def readable(self):
        """It is for writing."""
        return False

    def writable(self):
        """It is for writing."""
        return True

    def seekable(self):
        """It is a pipe."""
        return False


_PIPE = 1 << 16
_CHILDREN = ("os.system", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen")


class Runner:
    """Runs cells one after the other in one namespace."""

    def __init__(self, channel):
        self._channel = channel
        self._last = 1
        self.printed_to = None
        self._loop = None
        self._number = 0
        self._sources = {}
        self._enough = False
        self._thread = _thread.get_ident()
        self._screen = Screen(bundle_of, self._post, self._clear)
        self.namespace = {}
        self.reset()

    def reset(self):
        """A fresh namespace."""
        module = Module("__main__")
        module.__dict__.update(__builtins__=builtins, display=self._screen.display, clear_output=self._screen.clear_output)
        sys.modules["__main__"] = module
        self.namespace = module.__dict__

    def install(self):
        """Put streams, input, getpass and the plots' backend in their places."""
        sys.stdout, sys.stderr = Stream(self, "stdout", 1), Stream(self, "stderr", 2)
        self._read_line, builtins.input = builtins.input, self.input
        takers = {"getpass": self._take_getpass, "linecache": self._tell_sources}
        sys.meta_path.insert(0, Finder(self._screen, takers))
        if "getpass" in sys.modules:
            self._take_getpass(sys.modules["getpass"])
        sys.meta_path.append(Backend(self.show_figures))
        if hasattr(sys, "addaudithook"):  # Python 3.8
            sys.addaudithook(self._before_child)
        os.environ.setdefault("MPLBACKEND", "module://" + BACKEND)
        sys.path.insert(0, "")

    # what cells call

    def turn_to(self, fd):
        """Before output to another stream than the last: wait until the host has shown what was printed so far."""
        if fd != self._last and self._may_ask():
            self._last = fd
            self._channel.ask({"op": "sync"})
        if fd == self._last:
            self.printed_to = fd

    def _may_ask(self):
        return self._channel.is_ours and _thread.get_ident() == self._thread

    def _before_child(self, event, arguments):
        """An audit hook (PEP 578): a child prints to either stream, and what was printed before it must be shown before it."""
        if event in _CHILDREN and self.printed_to is not None and self._may_ask():
            self.printed_to = None
            self._channel.ask({"op": "sync"})

    def _post(self, data, metadata, display_id=None, update=False, result=False):
        if self._channel.is_ours and not self._enough:
            shown = {"op": "display", "data": fitting(data), "metadata": metadata, "result": result}
            shown.update(display_id=display_id, update=update)
            try:
                answer = self._channel.ask(shown)
            except TooLarge:  # by what is no text
                answer = self._channel.ask(dict(shown, data={"text/plain": TOO_LARGE % ", ".join(data)}, metadata={}))
            self._enough = bool(answer.get("enough"))

    def _clear(self, wait):
        if self._channel.is_ours and not self._enough:
            self._channel.ask({"op": "clear", "wait": wait})

    def show_figures(self):
        """Show every open matplotlib figure and close it."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or "matplotlib" not in sys.modules:
            return
        for number in pyplot.get_fignums():
            figure = pyplot.figure(number)
            self._post({"image/png": as_json(png_of(figure)), "text/plain": repr(figure)}, {})
        pyplot.close("all")

    def input(self, prompt=""):
        """builtins.input, answered by the front end; from stdin when nobody can be asked."""
        answer = self._question(str(prompt), False)
        return self._read_line(prompt) if answer is None else answer

    def _take_getpass(self, module):
        self._read_secret, module.getpass = module.getpass, self.getpass

    def getpass(self, prompt="Password: ", stream=None):
        """getpass.getpass, answered by the front end; from stdin when nobody can be asked."""
        answer = self._question(prompt, True)
        return self._read_secret(prompt, stream) if answer is None else answer

    def _question(self, prompt, password):
        return self._channel.ask({"op": "input", "prompt": prompt, "password": password}).get("text")

    # one cell

    def run(self, request, buffers):
        """Run one cell; the frame that tells how it ended, and buffers."""
        self._number += 1
        self._enough, before = False, time.perf_counter()
        reply, sent = {"op": "done", "status": "ok", "exit": 0}, []
        signal.signal(signal.SIGINT, self._channel.interrupt)
        try:
            self._take_in(request, buffers)
            self._execute(request)
            self.show_figures()
            reply["out"], sent = self._give_out(request)
        except SystemExit as err:
            reply.update(status="exit", exit=_exit_code(err))
        except NotPossible as err:
            reply.update(status="object", error=str(err), exit=1)
        except BaseException as err:
            reply.update(status="error", exit=1, **self._describe(err))
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        reply["seconds"] = time.perf_counter() - before
        return reply, sent

    def interrupted(self, err):
        """The frame for a cell whose interrupt came at its very end."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return dict(self._describe(err), op="done", status="error", exit=1, seconds=0.0)

    def _take_in(self, request, buffers):
        if not request.get("in"):
            return
        from .objects import decode

        for about in request.get("in", ()):
            first, count = about["first"], about["count"]
            self.namespace[about["name"]] = decode(about, buffers[first : first + count], True)

    def _give_out(self, request):
        described, buffers = [], []
        if not request.get("out"):
            return described, buffers
        from .objects import encode

        for name in request["out"]:
            if name not in self.namespace:
                raise NotPossible("%s: the cell has no such variable" % name)
            try:
                about, given = encode(self.namespace[name], request.get("arrow"), request.get("trust"))
            except NotPossible as err:
                raise NotPossible("%s: %s" % (name, err))
            described.append(dict(about, variable=name, first=len(buffers), count=len(given)))
            buffers.extend(given)
        return described, buffers

    def _execute(self, request):
        name = "<cell %d>" % self._number if request.get("keep") else "<cell>"
        source = "\n" * (request.get("first_line", 1) - 1) + request["code"]
        self._sources[name] = source
        if "linecache" in sys.modules:  # inspect.getsource and warnings ask there
            self._tell_sources(sys.modules["linecache"])
        tree = compile(source, name, "exec", _ast.PyCF_ONLY_AST, True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], _ast.Expr) else None
        self._evaluate(tree, name, "exec")
        if last is not None:
            value = self._evaluate(_ast.Expression(last.value), name, "eval")
            if value is not None and not source.rstrip().endswith(";"):
                builtins._ = value
                self._show_result(value)

    def _tell_sources(self, linecache):
        """Give linecache the cells, so that tracebacks show their lines."""
        while self._sources:
            name, source = self._sources.popitem()
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)

    def _show_result(self, value):
        data, metadata = bundle_of(value)
        if type(value).__module__ == "matplotlib.figure":
            sys.modules["matplotlib.pyplot"].close(value)  # or it would be shown once more after the cell
        self._post(data, metadata, result=True)

    def _evaluate(self, tree, name, mode):
        code = compile(tree, name, mode, flags=getattr(_ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0), dont_inherit=True)
        value = eval(code, self.namespace)
        if code.co_flags & 0x80 and hasattr(value, "send"):  # CO_COROUTINE: there is an await at the top
            return self._await(value)
        return value

    def _await(self, coroutine):
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            raise

    def _describe(self, err):
        """The error as IPython would report it; the runner's own frames left out."""
        import linecache
        import traceback

        self._tell_sources(linecache)
        frames = err.__traceback__
        while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<cell"):
            frames = frames.tb_next
        if frames is None:  # the cell itself does not compile
            lines = traceback.format_exception_only(type(err), err)
        else:
            lines = traceback.format_exception(type(err), err, frames)
        text = traceback.format_exception_only(type(err), err)[-1].strip()
        value, whole = _cut(text.partition(": ")[2], 10000), _cut("".join(lines).rstrip(), 500000)
        return {"name": type(err).__name__, "value": value, "traceback": whole.split("\n")}


def _cut(text, longest):
    """The beginning and the end of a long text."""
    half = longest // 2
    return text if len(text) <= longest else "%s… %d characters …%s" % (text[:half], len(text) - longest, text[-half:])


def _exit_code(err):
    if err.code is None or isinstance(err.code, int):
        return (err.code or 0) & 0xFF
    sys.stderr.write("%s\n" % err.code)
    return 1


def main(fd):
    """Serve cells from the socket `fd` until the host closes it or says that a cell was the last."""
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(fd)
    runner = Runner(channel)
    sys.argv, sys.path = [""], sys.path[1:]  # not the directory of this file
    runner.install()
    while True:
        request, buffers = channel.receive()
        operation = _OPERATIONS.get(request["op"])
        if operation is not None:
            operation(runner, channel, request, buffers)


def _run(runner, channel, request, buffers):
    try:
        reply, sent = runner.run(request, buffers)
    except KeyboardInterrupt as err:  # it came between the cell's end and the moment from which it is ignored
        reply, sent = runner.interrupted(err), []
    channel.send(reply, sent)
    if not request.get("keep"):
        sys.exit(reply["exit"])


def _libraries(runner, channel, request, buffers):
    from .objects import libraries

    channel.send({"op": "libraries", "names": libraries()})


def _answer(runner, channel, request, buffers):
    """A question between cells; what takes too long or fails is answered by nothing."""
    from . import answers

    signal.signal(signal.SIGINT, channel.interrupt)
    try:
        reply = _ANSWERS[request["op"]](answers, runner.namespace, request)
    except BaseException:  # a cell's own __getattr__ or __dir__ may do anything
        reply = {}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel.send(dict(reply, op="reply"))


_ANSWERS = {
    "complete": lambda answers, namespace, request: answers.complete(namespace, request["code"]),
    "inspect": lambda answers, namespace, request: answers.describe(namespace, request["code"], request["detail"]),
    "parse": lambda answers, namespace, request: answers.parse(request["code"]),
}

_OPERATIONS = {
    "run": _run,
    "libraries": _libraries,
    "reset": lambda runner, channel, request, buffers: runner.reset(),
    **dict.fromkeys(_ANSWERS, _answer),
}
