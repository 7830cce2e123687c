"""The whole command line, as click groups and commands.

The tables below say where each verb lives; a verb's module is imported when it is used, so that `sandbox --help` costs
one import of click and nothing of the engine. To add a verb: add a row here and a click command in its module.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from sandbox.cli.caller import invoked
from sandbox.cli.invocation import INTERRUPTED, guarded

if TYPE_CHECKING:
    from sandbox.cli.caller import Caller

PROGRAM = "sandbox"


class Verb(NamedTuple):
    """Where one verb is: the click command `function` of `sandbox.cli.<module>`, and its line in the list. A module with a
    dot is one above this package, which adds verbs to it (kernels): only its name is known here."""

    module: str
    function: str
    help: str


VERBS: dict[str, dict[str, Verb]] = {
    "Images": {
        "capture": Verb("images", "capture", "Make a base image of this machine's own Python"),
        "import": Verb("images", "import_", "Make an image of a root file system tar"),
        "build": Verb("build", "build", "Build an image from a Dockerfile"),
        "pull": Verb("registry", "pull", "Bring an image from a registry"),
        "push": Verb("registry", "push", "Send an image to a registry"),
        "login": Verb("registry", "login", "Log in to a registry"),
        "logout": Verb("registry", "logout", "Log out from a registry"),
        "search": Verb("searching", "search", "Look for images in a registry"),
        "images": Verb("images", "images", "List images"),
        "rmi": Verb("images", "rmi", "Remove images"),
        "tag": Verb("images", "tag", "Give an image another name"),
        "history": Verb("images", "history", "Show the layers of an image"),
        "save": Verb("images", "save", "Write images to a tar archive"),
        "load": Verb("images", "load", "Read images from a tar archive"),
    },
    "Containers": {
        "run": Verb("running", "run", "Run a program in a new container"),
        "create": Verb("running", "create", "Create a container without starting it"),
        "start": Verb("running", "start", "Start stopped containers"),
        "exec": Verb("running", "exec_", "Run a program in a running container"),
        "attach": Verb("attaching", "attach", "Take part in a running container: its output, its input"),
        "ps": Verb("containers", "ps", "List containers"),
        "logs": Verb("containers", "logs", "Show what a container printed"),
        "wait": Verb("containers", "wait", "Wait until containers stop, then print their exit codes"),
        "stop": Verb("containers", "stop", "Stop running containers"),
        "kill": Verb("containers", "kill", "Send a signal to running containers"),
        "restart": Verb("containers", "restart", "Stop containers and start them again"),
        "pause": Verb("containers", "pause", "Stop all processes of containers where they are"),
        "unpause": Verb("containers", "unpause", "Let paused containers go on"),
        "rename": Verb("containers", "rename", "Give a container another name"),
        "update": Verb("containers", "update", "Change the limits of containers"),
        "rm": Verb("containers", "rm", "Remove containers"),
        "top": Verb("watching", "top", "List the processes of a container"),
        "port": Verb("containers", "port", "Show which ports of this machine lead into a container"),
        "stats": Verb("watching", "stats", "Show what containers use, live"),
        "cp": Verb("copy", "cp", "Copy files between a container and this machine"),
        "diff": Verb("containers", "diff", "List what changed in a container's file system"),
        "commit": Verb("containers", "commit", "Make an image of a container's changes"),
        "export": Verb("containers", "export", "Write a container's file system as a tar"),
    },
    "Both": {
        "inspect": Verb("inspect", "inspect", "Show everything about images or containers as JSON"),
        "events": Verb("events", "events", "Show what happens, as it happens"),
        "prune": Verb("system", "prune", "Remove stopped containers, dangling images and unused layers"),
        "doctor": Verb("system", "doctor", "Say what this machine allows"),
        "trust": Verb("kernelspec.command", "trust", "Let a notebook's metadata give its kernel more"),
        "version": Verb("system", "version", "Show the version"),
        "info": Verb("system", "info", "Show the engine's state and the machine"),
    },
}

GROUPS: dict[str, tuple[str, dict[str, Verb]]] = {
    "image": (
        "Manage images",
        {
            "build": VERBS["Images"]["build"],
            "capture": VERBS["Images"]["capture"],
            "copy": Verb("copying", "copy", "Copy an image between registries, archives, directories and the store"),
            "history": VERBS["Images"]["history"],
            "import": VERBS["Images"]["import"],
            "inspect": Verb("inspect", "inspect_image", "Show everything about images as JSON"),
            "load": VERBS["Images"]["load"],
            "ls": Verb("images", "images", "List images"),
            "prune": Verb("system", "prune_images", "Remove unused images"),
            "pull": VERBS["Images"]["pull"],
            "push": VERBS["Images"]["push"],
            "rm": Verb("images", "rmi", "Remove images"),
            "save": VERBS["Images"]["save"],
            "search": VERBS["Images"]["search"],
            "tag": VERBS["Images"]["tag"],
            "tree": Verb("imagetree", "tree", "Show which layers images share"),
        },
    ),
    "manifest": (
        "Manage lists of images for several platforms",
        {
            "add": Verb("manifests", "add", "Put an image into a list"),
            "annotate": Verb("manifests", "annotate", "Say another platform of an image in a list"),
            "create": Verb("manifests", "create", "Make a list"),
            "inspect": Verb("manifests", "inspect", "Show a list, or what a registry has, as JSON"),
            "ls": Verb("manifests", "ls", "List the lists"),
            "push": Verb("manifests", "push", "Send a list and its images"),
            "remove": Verb("manifests", "remove", "Take images out of a list"),
            "rm": Verb("manifests", "rm", "Remove lists"),
        },
    ),
    "container": (
        "Manage containers",
        {
            **VERBS["Containers"],
            "inspect": Verb("inspect", "inspect_container", "Show everything about containers as JSON"),
            "ls": Verb("containers", "ps", "List containers"),
            "prune": Verb("system", "prune_containers", "Remove all stopped containers"),
        },
    ),
    "system": (
        "Manage the engine",
        {
            "info": VERBS["Both"]["info"],
            "events": VERBS["Both"]["events"],
            "prune": VERBS["Both"]["prune"],
            "restore": Verb("system", "restore", "After a reboot, start what its restart policy wants running"),
            "doctor": VERBS["Both"]["doctor"],
            "df": Verb("disk", "df", "Show what is on disk"),
        },
    ),
    "kernel": (
        "Manage Jupyter kernels that run in containers",
        {
            "install": Verb("kernelspec.command", "install", "Make a kernel of an image"),
            "list": Verb("kernelspec.command", "list_", "List the kernels of ours"),
            "remove": Verb("kernelspec.command", "remove", "Remove kernels of ours"),
            "doctor": Verb("kernelspec.command", "doctor", "Say whether each could start"),
            "reset": Verb("kernelspec.command", "reset", "Drop the containers of kernels"),
        },
    ),
    "network": (
        "Manage networks",
        {
            "connect": Verb("networks", "connect", "Put a container into one more network"),
            "create": Verb("networks", "create", "Make a network"),
            "disconnect": Verb("networks", "disconnect", "Take a container out of a network"),
            "inspect": Verb("networks", "inspect", "Show everything about networks as JSON"),
            "ls": Verb("networks", "ls", "List networks"),
            "prune": Verb("networks", "prune", "Remove networks that no container is in"),
            "rm": Verb("networks", "rm", "Remove networks"),
        },
    ),
    "volume": (
        "Manage volumes",
        {
            "create": Verb("volumes", "create", "Make a volume"),
            "inspect": Verb("volumes", "inspect", "Show everything about volumes as JSON"),
            "ls": Verb("volumes", "ls", "List volumes"),
            "prune": Verb("volumes", "prune", "Remove volumes that no container has"),
            "rm": Verb("volumes", "rm", "Remove volumes"),
        },
    ),
    "builder": (
        "Manage builds",
        {
            "build": VERBS["Images"]["build"],
            "prune": Verb("builder", "prune", "Remove build cache"),
        },
    ),
}


class LazyGroup(click.Group):
    """A click group whose commands are rows of tables until one is called. `sections` are printed under their titles."""

    def __init__(self, name: str, sections: Mapping[str, Mapping[str, Verb]], groups: Mapping[str, str], **attributes: object) -> None:
        # click's own constructor arguments; this class adds none of its own to them.
        super().__init__(name, **attributes)  # type: ignore[arg-type]
        self.sections, self.groups = sections, groups
        self.verbs = {name: verb for section in sections.values() for name, verb in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """All names, in the tables' order."""
        return [*self.verbs, *self.groups]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 (click's signature)
        """The command of that name, its module imported now."""
        if cmd_name in self.groups:
            return group_of(cmd_name)
        if (verb := self.verbs.get(cmd_name)) is None:
            return None
        module = verb.module if "." in verb.module else f"sandbox.cli.{verb.module}"
        command = getattr(import_module(module), verb.function)
        if not isinstance(command, click.Command):
            raise TypeError(f"{verb.module}.{verb.function}: not a click command")
        return command

    def invoke(self, ctx: click.Context) -> object:
        """As click does; the verb finds the global options in `invocation()`."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        with invoked(root=ctx.params.get("root"), debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which name was probably meant."""
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx) and not ctx.resilient_parsing:
            raise click.UsageError(f"{name!r}: no such command{_near(name, self.list_commands(ctx))}", ctx)
        if args[:2] == ["build", "prune"] and "builder" in self.groups and not Path("prune").is_dir():
            return super().resolve_command(ctx, ["builder", *args[1:]])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 (click's signature)
        """The tables, as they stand: no command is imported for its help."""
        for title, section in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.help) for name, verb in section.items()])
        if self.groups:
            with formatter.section("Groups"):
                formatter.write_dl(list(self.groups.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """The names that begin so, without importing any command."""
        from click.shell_completion import CompletionItem

        texts = {**{name: verb.help for name, verb in self.verbs.items()}, **self.groups}
        found = [CompletionItem(name, help=text) for name, text in texts.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


def _near(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


def group_of(name: str) -> LazyGroup:
    """docker's group of that name."""
    help, verbs = GROUPS[name]
    return LazyGroup(name, {"Commands": verbs}, {}, help=help, context_settings={"help_option_names": ["--help"]})


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 (click's signature)
    if value:
        from sandbox.cli.system import version_text

        click.echo(f"{PROGRAM} version {version_text()}")
        ctx.exit()


def program() -> LazyGroup:
    """The whole command line, as a click group."""
    options = [
        click.Option(
            ["--root"], type=click.Path(file_okay=False, path_type=Path), envvar="SANDBOX_ROOT", metavar="DIR",
            help="The engine's state directory (also SANDBOX_ROOT)."
        ),
        click.Option(["-D", "--debug"], is_flag=True, help="Log each step, and show tracebacks."),
        click.Option(["-v", "--version"], is_flag=True, help="Show the version.", callback=_show_version, expose_value=False),
    ]  # fmt: skip
    return LazyGroup(
        PROGRAM,
        VERBS,
        {name: help for name, (help, _) in GROUPS.items()},
        params=options,
        help="Build images and run containers without a daemon; verbs and flags are docker's.",
        epilog=f"{PROGRAM} VERB --help tells more. Names and unique id prefixes name images and containers.",
        context_settings={"help_option_names": ["--help"], "max_content_width": 120},
    )


def run(argv: Sequence[str], *, caller: Caller | None = None) -> int:
    """Run the command line; the process's exit status. Every error becomes text on stderr here and nowhere else.

    `caller` gets the tables and objects that would else be printed (a notebook shows them its own way); then errors are raised, too.
    """
    words = list(argv)
    try:
        with invoked(caller=caller):
            return guarded(lambda: program().main(args=words, prog_name=_program_name(), standalone_mode=False), argv)
    except click.UsageError as err:
        from sandbox.cli import failures

        if caller is not None:
            raise failures.as_invalid(err) from err
        return failures.show_usage_error(err)
    except click.Abort:
        return INTERRUPTED


def _program_name() -> str:
    name = Path(sys.argv[0]).name
    return "jupyter sandbox" if name == "jupyter-sandbox" else PROGRAM
