"""`sandbox-oci`: the runtime with runc's command line, for engines that bring their own bundles (podman, containerd, conformance suites).

argparse, not click: an engine starts this command three times a container, and every import counts. Each command is a row of
COMMANDS: its arguments and the function that performs it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from sandbox.errors import InvalidBundle, InvalidOption, SandboxError, Unsupported
from sandbox.runtime.init.hooks import HookFailed

PROGRAM = "sandbox-oci"
SPEC_VERSION = "1.2.0"
Arguments = argparse.Namespace


class Argument(msgspec.Struct, frozen=True):
    """One argument of a command, as argparse takes it."""

    names: tuple[str, ...]
    help: str
    action: str = "store"
    kind: Callable[[str], Any] | None = None
    default: Any = None
    metavar: str | None = None
    nargs: str | int | None = None
    choices: tuple[str, ...] | None = None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare it."""
        given: dict[str, Any] = {"help": self.help}
        if self.action != "store":
            given["action"] = self.action
        rest = {"type": self.kind, "default": self.default, "metavar": self.metavar, "nargs": self.nargs, "choices": self.choices}
        given |= {name: value for name, value in rest.items() if value is not None}
        parser.add_argument(*self.names, **given)


class Command(msgspec.Struct, frozen=True):
    """A command: what it does, its arguments, the function."""

    help: str
    perform: Callable[[Arguments], int]
    arguments: tuple[Argument, ...] = ()


def run(argv: Sequence[str]) -> int:
    """Perform the command line; the status is 1 for an error, as runc's, and the program's own for run and exec."""
    arguments = _parser().parse_args(argv)
    try:
        _check_global(arguments)
        return COMMANDS[arguments.command].perform(arguments)
    except (SandboxError, HookFailed, OSError) as err:
        _log(arguments, err)
        return 1


def _log(arguments: Arguments, err: Exception) -> None:
    """To --log in the format the engine asked for (it reads the reason there), and always to stderr."""
    message = str(err)
    hint = getattr(err, "hint", None)
    sys.stderr.write(f"{PROGRAM}: {message}" + (f" ({hint})" if hint else "") + "\n")
    if not arguments.log:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if arguments.log_format == "json":
        line = json.dumps({"level": "error", "msg": message, "time": now})
    else:
        line = f'time="{now}" level=error msg={json.dumps(message)}'
    with open(arguments.log, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def _check_global(arguments: Arguments) -> None:
    if arguments.systemd_cgroup:
        raise Unsupported("--systemd-cgroup: systemd's groups are not supported", feature="systemd-cgroup", hint="use the cgroupfs manager")


def default_root() -> Path:
    """/run/sandbox-oci for root, below $XDG_RUNTIME_DIR for others."""
    if os.geteuid() == 0:
        return Path("/run/sandbox-oci")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise InvalidOption("--root: no default without XDG_RUNTIME_DIR")
    return Path(runtime) / "sandbox-oci"


def _print(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _bundles(arguments: Arguments) -> Any:  # Any: imported late
    from sandbox.runtime.bundle.lifecycle import Bundles

    return Bundles(Path(arguments.root) if arguments.root else default_root())


def _given(arguments: Arguments) -> Any:
    from sandbox.runtime.bundle.making import Given

    return Given(
        pid_file=Path(arguments.pid_file).absolute() if arguments.pid_file else None,
        console=Path(arguments.console_socket).absolute() if arguments.console_socket else None,
        preserve_fds=arguments.preserve_fds,
        pivot=not getattr(arguments, "no_pivot", False),
    )


# Commands -------------------------------------------------------------------------------------------------------------


def _create(arguments: Arguments) -> int:
    _bundles(arguments).create(arguments.id, Path(arguments.bundle), _given(arguments))
    return 0


def _start(arguments: Arguments) -> int:
    _bundles(arguments).start(arguments.id)
    return 0


def _run(arguments: Arguments) -> int:
    from sandbox.runtime.bundle.foreground import run_bundle

    given = _given(arguments)
    return run_bundle(_bundles(arguments), arguments.id, Path(arguments.bundle), given, detach=arguments.detach, keep=arguments.keep)


def _exec(arguments: Arguments) -> int:
    from sandbox.runtime.bundle.foreground import exec_process

    bundles = _bundles(arguments)
    return exec_process(bundles, arguments.id, _exec_process(arguments, bundles), _given(arguments), detach=arguments.detach)


def _exec_process(arguments: Arguments, bundles: Any) -> Any:
    """The process to start: a file's, or the container's own with what the flags change."""
    import msgspec

    from sandbox.runtime.bundle.config import User, read_process

    if arguments.process:
        return read_process(Path(arguments.process))
    if not arguments.args:
        raise InvalidOption("exec: no program given")
    process = bundles.default_process(arguments.id)
    changes: dict[str, Any] = {"args": tuple(arguments.args), "terminal": arguments.tty, "env": (*process.env, *arguments.env)}
    if arguments.cwd:
        changes["cwd"] = arguments.cwd
    if arguments.user:
        uid, _, gid = arguments.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise InvalidOption(f"--user {arguments.user}: expected numbers, UID[:GID]")
        changes["user"] = User(uid=int(uid), gid=int(gid or 0), additional_gids=tuple(arguments.additional_gids))
    if arguments.no_new_privs:
        changes["no_new_privileges"] = True
    if arguments.cap:
        changes["capabilities"] = _with_capabilities(process.capabilities, arguments.cap)
    return msgspec.structs.replace(process, **changes)


def _with_capabilities(given: Any, names: Sequence[str]) -> Any:
    import msgspec

    from sandbox.runtime.bundle.config import Capabilities

    before = given or Capabilities()
    sets = {name: tuple(dict.fromkeys([*getattr(before, name), *names])) for name in ("bounding", "effective", "permitted")}
    return msgspec.structs.replace(before, **sets)


def _state(arguments: Arguments) -> int:
    states = _bundles(arguments).states
    _print(json.dumps(states.state(states.read(arguments.id)), indent=2))
    return 0


def _kill(arguments: Arguments) -> int:
    from sandbox.options import parse_signal

    _bundles(arguments).kill(arguments.id, parse_signal(arguments.signal), everyone=arguments.all)
    return 0


def _delete(arguments: Arguments) -> int:
    _bundles(arguments).delete(arguments.id, force=arguments.force)
    return 0


def _list(arguments: Arguments) -> int:
    states = _bundles(arguments).states
    found = [states.state(states.read(name)) for name in states.ids()]
    if arguments.quiet:
        _print(*(state["id"] for state in found))
    elif arguments.format == "json":
        _print(json.dumps(found))
    else:
        columns = ("id", "pid", "status", "bundle", "created", "owner")
        _print_table([name.upper() for name in columns], [[state[name] for name in columns] for state in found])
    return 0


def _print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [tuple(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        _print("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _ps(arguments: Arguments) -> int:
    pids = _bundles(arguments).processes(arguments.id)
    if arguments.format == "json":
        _print(json.dumps(pids))
        return 0
    done = subprocess.run(["ps", *(arguments.ps_options or ["-ef"])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InvalidOption(f"ps: {done.stderr.strip()}")
    head, *lines = done.stdout.splitlines()
    column = head.split().index("PID")
    _print(head, *(line for line in lines if line.split()[column] in map(str, pids)))
    return 0


def _pause(arguments: Arguments) -> int:
    _bundles(arguments).freeze(arguments.id)
    return 0


def _resume(arguments: Arguments) -> int:
    _bundles(arguments).freeze(arguments.id, thaw=True)
    return 0


_UPDATES = {
    "memory": ("memory", "limit"), "memory_reservation": ("memory", "reservation"), "memory_swap": ("memory", "swap"),
    "cpu_share": ("cpu", "shares"), "cpu_period": ("cpu", "period"), "cpu_quota": ("cpu", "quota"), "cpu_burst": ("cpu", "burst"),
    "cpuset_cpus": ("cpu", "cpus"), "cpuset_mems": ("cpu", "mems"), "cpu_idle": ("cpu", "idle"), "pids_limit": ("pids", "limit"),
    "blkio_weight": ("blockIO", "weight"),
}  # fmt: skip
"""update's flags → the field of `linux.resources` that each is."""


def _update(arguments: Arguments) -> int:
    asked: dict[str, Any] = {}
    if arguments.resources:
        text = sys.stdin.read() if arguments.resources == "-" else Path(arguments.resources).read_text(encoding="utf-8")
        try:
            asked = json.loads(text)
        except ValueError as err:
            raise InvalidBundle(f"--resources: {err}") from err
    for name, (group, field) in _UPDATES.items():
        if (value := getattr(arguments, name)) is not None:
            asked.setdefault(group, {})[field] = value
    _bundles(arguments).update(arguments.id, asked)
    return 0


def _spec(arguments: Arguments) -> int:
    from sandbox.runtime.bundle.template import default_config

    path = Path(arguments.bundle) / "config.json"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(default_config(rootless=arguments.rootless), indent=4))
    except FileExistsError as err:
        raise InvalidOption(f"{path}: exists already", hint="remove it first") from err
    return 0


def _features(_: Arguments) -> int:
    from sandbox.runtime.bundle.features import features

    _print(json.dumps(features(), indent=4))
    return 0


# The table ------------------------------------------------------------------------------------------------------------

_ID = Argument(("id",), "the container's id", metavar="ID")
_BUNDLE = Argument(("-b", "--bundle"), "the bundle's directory (default: here)", default=".")
_PROCESS = (
    Argument(("--console-socket",), "the socket that takes the terminal's master end", metavar="PATH"),
    Argument(("--pid-file",), "where to write the process id", metavar="PATH"),
    Argument(("--preserve-fds",), "hand on this many descriptors from 3 on", kind=int, default=0, metavar="N"),
)
_NO_PIVOT = Argument(("--no-pivot",), "chroot instead of pivot_root (for a root file system on an initramfs)", "store_true")
_DETACH = Argument(("-d", "--detach"), "return once it runs", "store_true")


def _bytes(text: str) -> int:
    from sandbox.options import parse_size

    return -1 if text == "-1" else parse_size(text)


COMMANDS: dict[str, Command] = {
    "create": Command("set a container up; its program waits for start", _create, (_ID, _BUNDLE, *_PROCESS, _NO_PIVOT)),
    "start": Command("let the program of a created container run", _start, (_ID,)),
    "run": Command(
        "create, start, wait and delete", _run,
        (_ID, _BUNDLE, *_PROCESS, _NO_PIVOT, _DETACH, Argument(("--keep",), "do not delete it at the end", "store_true")),
    ),
    "exec": Command(
        "run one more program in a container", _exec,
        (
            *_PROCESS, _DETACH,
            Argument(("-p", "--process"), "a process.json that says what to run", metavar="PATH"),
            Argument(("-t", "--tty"), "with a terminal", "store_true"),
            Argument(("-e", "--env"), "NAME=VALUE", "append", default=[]),
            Argument(("-u", "--user"), "UID[:GID]", metavar="UID[:GID]"),
            Argument(("-g", "--additional-gids"), "one more group", "append", kind=int, default=[]),
            Argument(("-c", "--cap"), "one more capability", "append", default=[]),
            Argument(("--cwd",), "the working directory"),
            Argument(("--no-new-privs",), "no_new_privs", "store_true"),
            _ID,
            Argument(("args",), "the program and its arguments", nargs=argparse.REMAINDER),
        ),
    ),
    "state": Command("print a container's state as JSON", _state, (_ID,)),
    "kill": Command(
        "send a signal", _kill,
        (
            _ID,
            Argument(("signal",), "its name or number", nargs="?", default="TERM"),
            Argument(("-a", "--all"), "to all processes", "store_true"),
        ),
    ),
    "delete": Command("forget a stopped container", _delete, (_ID, Argument(("-f", "--force"), "kill it first", "store_true"))),
    "list": Command(
        "list containers", _list,
        (
            Argument(("-f", "--format"), "table or json", default="table", choices=("table", "json")),
            Argument(("-q", "--quiet"), "ids only", "store_true"),
        ),
    ),
    "ps": Command(
        "list a container's processes", _ps,
        (
            Argument(("-f", "--format"), "table or json", default="table", choices=("table", "json")), _ID,
            Argument(("ps_options",), "options of ps(1)", nargs=argparse.REMAINDER),
        ),
    ),
    "pause": Command("stop all processes for a while", _pause, (_ID,)),
    "resume": Command("let them go on", _resume, (_ID,)),
    "update": Command(
        "change limits", _update,
        (
            _ID,
            Argument(("-r", "--resources"), "a JSON file with linux.resources, - for stdin", metavar="PATH"),
            Argument(("--memory",), "bytes", kind=_bytes), Argument(("--memory-reservation",), "bytes", kind=_bytes),
            Argument(("--memory-swap",), "memory and swap together, bytes", kind=_bytes),
            Argument(("--cpu-share",), "relative weight", kind=int),
            Argument(("--cpu-period",), "microseconds", kind=int), Argument(("--cpu-quota",), "microseconds", kind=int),
            Argument(("--cpu-burst",), "microseconds", kind=int), Argument(("--cpu-idle",), "0 or 1", kind=int),
            Argument(("--cpuset-cpus",), "a list such as 0-2,4"), Argument(("--cpuset-mems",), "a list"),
            Argument(("--pids-limit",), "processes", kind=int), Argument(("--blkio-weight",), "10 to 1000", kind=int),
        ),
    ),
    "spec": Command(
        "write a config.json to start from", _spec,
        (_BUNDLE, Argument(("--rootless",), "one for an ordinary user", "store_true")),
    ),
    "features": Command("print what this runtime can do as JSON", _features),
}  # fmt: skip

_GLOBAL = (
    Argument(("--root",), "where the containers' state is", metavar="DIR"),
    Argument(("--log",), "write errors there as well", metavar="PATH"),
    Argument(("--log-format",), "text or json", default="text", choices=("text", "json")),
    Argument(("--debug",), "accepted; there is no more to say", "store_true"),
    Argument(("--rootless",), "accepted: found out by itself", default="auto", choices=("auto", "true", "false")),
    Argument(("--systemd-cgroup",), "refused: groups are made through the cgroup file system", "store_true"),
)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: the look-up costs more than everything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        _print(f"{PROGRAM} version {version('jupyter-sandbox')}\nspec: {SPEC_VERSION}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="The runtime of jupyter-sandbox for OCI bundles, with runc's command line.")
    parser.add_argument("-v", "--version", action=_Version, nargs=0, help="print the version")
    for argument in _GLOBAL:
        argument.add_to(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        below = commands.add_parser(name, help=command.help, description=command.help, formatter_class=argparse.RawDescriptionHelpFormatter)
        for argument in command.arguments:
            argument.add_to(below)
    return parser
