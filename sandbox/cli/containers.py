"""Verbs about containers that exist."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
import msgspec

from sandbox.cli.completing import complete_containers
from sandbox.cli.filters import Filters, has_label, name_matches, parse_filters
from sandbox.cli.flags import Converted, verb
from sandbox.cli.formatting import Field, Lines, Listing, age_text, labels_text, quoted, short_id, shortened, show, time_text
from sandbox.cli.images import format_option, no_trunc_option, quiet_option, refuse_terminal
from sandbox.cli.invocation import each, engine, write_bytes
from sandbox.errors import ContainerNotFound, ImageError, InvalidOption, InvalidReference, NetworkError
from sandbox.options import RUN, RunOptions, given, parse_duration, parse_signal

if TYPE_CHECKING:
    from sandbox.engine import Container, Engine
    from sandbox.logs import LogLine
    from sandbox.runtime.spec import Port

_COMMAND = 20  # docker's width of this column
names_argument = click.argument("names", nargs=-1, required=True, metavar="CONTAINER...", shell_complete=complete_containers)
seconds_option = click.option(
    "-t", "--timeout", "--time", "seconds", type=int, metavar="SECONDS", help="How long before SIGKILL (its --stop-timeout, 10)."
)  # fmt: skip
stop_signal_option = click.option(
    "-s", "--signal", "number", type=Converted(parse_signal, "signal"), metavar="SIGNAL", help="Instead of the stop signal."
)  # fmt: skip
kill_signal_option = click.option(
    "-s", "--signal", "number", type=Converted(parse_signal, "signal"), default="KILL", show_default=True, metavar="SIGNAL", help="To send."
)  # fmt: skip
_PS_FILTERS = "id, name, label, status, exited, ancestor, before or since."
name_argument = click.argument("name", metavar="CONTAINER", shell_complete=complete_containers)


class Shown(msgspec.Struct, frozen=True):
    """One container of `ps` and how to show it."""

    container: Container
    now: datetime
    truncate: bool
    _facts: dict[str, Any] = msgspec.field(default_factory=dict)  # Any: docker's JSON

    @property
    def id(self) -> str:
        """The id as asked for."""
        return short_id(self.container.id) if self.truncate else self.container.id

    @property
    def command(self) -> str:
        """What runs, in quotes; arguments with blanks in quotes of their own, as docker shows them."""
        program, *arguments = self.container.command
        text = " ".join([program, *(f"'{argument}'" if " " in argument else argument for argument in arguments)])
        return quoted(shortened(text, _COMMAND) if self.truncate else text)

    @property
    def image(self) -> str:
        """As it was asked for; a bare id is shortened."""
        name = self.container.image_name
        return short_id(name) if self.truncate and name.startswith("sha256:") else name

    def fact(self, section: str, key: str) -> Any:
        """Something only `inspect` knows."""
        if not self._facts:
            self._facts.update(self.container.inspect())
        return (self._facts.get(section) or {}).get(key)

    @property
    def mounts(self) -> list[Mapping[str, Any]]:
        """docker's mount points."""
        if not self._facts:
            self._facts.update(self.container.inspect())
        return list(self._facts.get("Mounts") or [])


def port_text(port: Port) -> str:
    """docker's `127.0.0.1:8080->80/tcp`."""
    return f"{_host_side(port)}->{port.container}/{port.protocol}"


def _host_side(port: Port) -> str:
    address = f"[{port.address}]" if ":" in port.address else port.address
    return f"{address}:{port.host}"


def _mounts_text(shown: Shown) -> str:
    return ",".join(str(mount.get("Name") or mount.get("Source") or "") for mount in shown.mounts)


def _local_volumes(shown: Shown) -> str:
    return str(sum(mount.get("Type") == "volume" for mount in shown.mounts))


CONTAINERS: Listing[Shown] = Listing(
    [
        Field("Command", "COMMAND", lambda s: s.command),
        Field("CreatedAt", "CREATED AT", lambda s: time_text(s.container.created)),
        Field("ID", "CONTAINER ID", lambda s: s.id),
        Field("Image", "IMAGE", lambda s: s.image),
        Field("Labels", "LABELS", lambda s: labels_text(s.container.labels)),
        Field("LocalVolumes", "LOCAL VOLUMES", _local_volumes),
        Field("Mounts", "MOUNTS", _mounts_text),
        Field("Names", "NAMES", lambda s: s.container.name),
        Field("Networks", "NETWORKS", lambda s: str(s.fact("HostConfig", "NetworkMode") or "")),
        Field("Ports", "PORTS", lambda s: ", ".join(port_text(port) for port in s.container.ports)),
        Field("RunningFor", "CREATED", lambda s: age_text(s.container.created, s.now)),
        Field("State", "STATE", lambda s: s.container.status),
        Field("Status", "STATUS", lambda s: s.container.describe_status(s.now)),
    ],
    ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"],
)


@verb("ps")
@click.option("-a", "--all", "show_all", is_flag=True, help="Also those that do not run.")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=_PS_FILTERS)
@click.option("-n", "--last", type=int, default=-1, metavar="N", help="The last N created, running or not.")
@click.option("-l", "--latest", is_flag=True, help="The last created, running or not.")
@format_option
@no_trunc_option
@quiet_option
def ps(
    show_all: bool, filters: Sequence[str], last: int, latest: bool, format: str | None, no_trunc: bool, quiet: bool
) -> None:  # fmt: skip
    """List containers, newest first."""
    count = 1 if latest else last
    with engine() as opened:
        wanted = container_filters(opened, filters)
        every = show_all or count >= 0 or bool(wanted.wanted.keys() & {"status", "exited"})
        found = sorted(filter(wanted, opened.containers(all=every)), key=lambda c: c.created, reverse=True)
        now = datetime.now(UTC)
        shown = [Shown(container, now, not no_trunc) for container in (found[:count] if count >= 0 else found)]
        CONTAINERS.show(shown, "{{.ID}}" if quiet else format)


def container_filters(opened: Engine, texts: Sequence[str]) -> Filters[Container]:
    """`-f` of ps."""
    return parse_filters(
        texts,
        {
            "id": lambda c, text: c.id.startswith(text),
            "name": lambda c, text: name_matches(c.name, text),
            "label": lambda c, text: has_label(c.labels, text),
            "status": lambda c, text: c.status == _choice("status", text, _STATES),
            "exited": lambda c, text: c.status == "exited" and c.completed is not None and str(c.completed.exit_code) == text,
            "health": lambda c, text: c.health == _choice("health", text, _HEALTH),
            "ancestor": lambda c, text: _descends(opened, c, text),
            "before": lambda c, text: c.created < opened.container(text).created,
            "since": lambda c, text: c.created > opened.container(text).created,
        },
    )


_STATES = ("created", "running", "exited", "paused", "restarting", "removing", "dead")


_HEALTH = ("none", "starting", "healthy", "unhealthy")


def _choice(name: str, text: str, choices: Sequence[str]) -> str:
    if text not in choices:
        raise InvalidOption(f"filter {name}={text!r}: not one of {', '.join(choices)}")
    return text


def _descends(opened: Engine, container: Container, name: str) -> bool:
    """Whether it runs this image; an image that is gone is compared by what the user called it."""
    if container.image_name in (name, f"{name}:latest"):
        return True
    try:
        return container.image_id == opened.image(name).id
    except (ImageError, InvalidReference):
        return False


def parse_moment(text: str, now: datetime) -> datetime:
    """docker's `--since`: RFC 3339, seconds since 1970, or how long ago (`10m`)."""
    if text.replace(".", "", 1).isdigit():
        return datetime.fromtimestamp(float(text), UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            return now - timedelta(seconds=parse_duration(text))
        except InvalidOption as err:
            raise InvalidOption(f"time {text!r}: neither a moment nor a duration", hint="write 2026-01-02T15:04:05 or 10m") from err
    return moment if moment.tzinfo else moment.astimezone()


def parse_tail(text: str) -> int | None:
    """`all` or a number of lines."""
    if text == "all":
        return None
    if not text.isdigit():
        raise InvalidOption(f"{text!r}: neither a number of lines nor all")
    return int(text)


@verb("logs")
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on until the container ends.")
@click.option("-n", "--tail", type=Converted(parse_tail, "lines"), default="all", metavar="N|all", help="Lines from the end.")
@click.option("--since", metavar="TIME", help="Only what is younger: a moment or 10m.")
@click.option("--until", metavar="TIME", help="Only what is older: a moment or 10m.")
@click.option("-t", "--timestamps", is_flag=True, help="Print the time before each line.")
def logs(name: str, follow: bool, tail: int | None, since: str | None, until: str | None, timestamps: bool) -> None:
    """Show what a container printed: its stdout on stdout, its stderr on stderr."""
    now = datetime.now(UTC)
    oldest = parse_moment(since, now) if since else None
    newest = parse_moment(until, now) if until else None
    with engine() as opened:
        for line in opened.container(name).logs(follow=follow, tail=tail, since=oldest):
            if newest is not None and line.time > newest:
                break
            write_bytes(_log_bytes(line, timestamps), 2 if line.stream == "stderr" else 1)


def _log_bytes(line: LogLine, timestamps: bool) -> bytes:
    if not timestamps:
        return line.data
    stamp = line.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z "
    return stamp.encode() + line.data


@verb("wait")
@names_argument
def wait(names: Sequence[str]) -> int:
    """Wait until containers stop, then print their exit codes."""
    with engine() as opened:
        return each(names, lambda name: str(opened.container(name).wait().exit_code))


@verb("stop")
@names_argument
@seconds_option
@stop_signal_option
def stop(names: Sequence[str], seconds: int | None, number: int | None) -> int:
    """Stop running containers: the stop signal, later SIGKILL."""

    def end(name: str) -> str:
        opened.container(name).stop(seconds, signal=number)
        return name

    with engine() as opened:
        return each(names, end)


@verb("restart")
@names_argument
@seconds_option
@stop_signal_option
def restart(names: Sequence[str], seconds: int | None, number: int | None) -> int:
    """Stop containers and start them again."""

    def again(name: str) -> str:
        opened.container(name).restart(seconds, signal=number)
        return name

    with engine() as opened:
        return each(names, again)


@verb("pause")
@names_argument
def pause(names: Sequence[str]) -> int:
    """Stop all processes of containers where they are."""
    with engine() as opened:

        def act(name: str) -> str:
            opened.container(name).pause()
            return name

        return each(names, act)


@verb("unpause")
@names_argument
def unpause(names: Sequence[str]) -> int:
    """Let paused containers go on."""
    with engine() as opened:

        def act(name: str) -> str:
            opened.container(name).unpause()
            return name

        return each(names, act)


@verb("rename")
@name_argument
@click.argument("new_name", metavar="NEW_NAME")
def rename(name: str, new_name: str) -> None:
    """Give a container another name."""
    with engine() as opened:
        opened.container(name).rename(new_name)


_CHANGED = ("memory", "memory_swap", "memory_reservation", "cpus", "cpu_shares", "cpuset_cpus", "cpuset_mems", "blkio_weight")
"""Limits that bear the name of their option."""
_UPDATE = [row for row in RUN if row.field in (*_CHANGED, "pids_limit", "restart")]


@verb("update", _UPDATE)
@names_argument
def update(names: Sequence[str], **values: object) -> int:
    """Change the limits of containers, running or not, or their restart policy (from the next start on)."""
    from sandbox.engine import Limits

    options = given(RunOptions(), values)
    limits = Limits(pids=options.pids_limit, **{name: getattr(options, name) for name in _CHANGED})
    restart = options.restart if values.get("restart") else None
    with engine() as opened:

        def act(name: str) -> str:
            opened.container(name).update(limits, restart=restart)
            return name

        return each(names, act)


@verb("kill")
@names_argument
@kill_signal_option
def kill(names: Sequence[str], number: int) -> int:
    """Send a signal to running containers."""

    def send(name: str) -> str:
        opened.container(name).kill(number)
        return name

    with engine() as opened:
        return each(names, send)


@verb("rm")
@names_argument
@click.option("-f", "--force", is_flag=True, help="Also running ones: they get SIGKILL.")
@click.option("-v", "--volumes", is_flag=True, help="Its volumes without a name, too.")
def rm(names: Sequence[str], force: bool, volumes: bool) -> int:
    """Remove containers."""

    def remove(name: str) -> str | None:
        try:
            opened.container(name).remove(force=force, volumes=volumes)
        except ContainerNotFound:
            if not force:
                raise
            return None
        return name

    with engine() as opened:
        return each(names, remove)


@verb("diff")
@name_argument
def diff(name: str) -> None:
    """List what changed in a container's file system: A added, C changed, D deleted."""
    with engine() as opened:
        show(Lines(tuple(f"{kind} {path}" for kind, path in opened.container(name).diff())))


@verb("commit")
@name_argument
@click.argument("target", required=False, metavar="[REPOSITORY[:TAG]]")
@click.option("-a", "--author", default="", metavar="TEXT", help="Author.")
@click.option("-m", "--message", default="", metavar="TEXT", help="Commit message.")
@click.option("-c", "--change", "changes", multiple=True, metavar="INSTRUCTION", help="Apply a Dockerfile instruction, such as 'CMD sh'.")
def commit(name: str, target: str | None, author: str, message: str, changes: Sequence[str]) -> None:
    """Make an image of a container's changes and print its id."""
    with engine() as opened:
        image = opened.container(name).commit(target, message=message, author=author, changes=changes)
    click.echo(image.id)


@verb("export")
@name_argument
@click.option("-o", "--output", type=click.Path(dir_okay=False), metavar="FILE", help="Write here and not to stdout.")
def export(name: str, output: str | None) -> None:
    """Write a container's whole file system as a tar."""
    refuse_terminal(output)
    with engine() as opened:
        opened.container(name).export(output if output is not None else sys.stdout.buffer)


@verb("port")
@name_argument
@click.argument("port", required=False, metavar="[PORT[/PROTOCOL]]")
def port(name: str, port: str | None) -> None:
    """Show which ports of this machine lead into a container."""
    with engine() as opened:
        container = opened.container(name)
        wanted = f"{port}/tcp" if port and "/" not in port else port
        found = [each for each in container.ports if wanted in (None, f"{each.container}/{each.protocol}")]
        if port and not found:
            raise NetworkError(f"container {container.name}: its port {wanted} is not published")
        show(Lines(tuple(_host_side(each) if port else f"{each.container}/{each.protocol} -> {_host_side(each)}" for each in found)))
