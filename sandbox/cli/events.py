"""`events`: what happens to containers, images, volumes and networks, as it happens."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from sandbox.cli.containers import parse_moment
from sandbox.cli.filters import Filters, has_label, parse_filters
from sandbox.cli.flags import verb
from sandbox.cli.images import format_option
from sandbox.cli.invocation import engine, write_bytes
from sandbox.cli.templates import Template, go_json

if TYPE_CHECKING:
    from sandbox.events import Event

_KEYS = "type, event, container, image, volume, network, label"


@verb("events")
@click.option("-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help=f"Only those: {_KEYS}.")
@format_option
@click.option("--since", metavar="TIME", help="Also what was: since a moment, or 10m ago.")
@click.option("--until", metavar="TIME", help="End then: a moment, or 10m ago.")
def events(filters: Sequence[str], format: str | None, since: str | None, until: str | None) -> None:
    """Show what happens, as it happens. Ctrl-C ends it, or --until."""
    now = datetime.now(UTC)
    template = Template.parse(format) if format and format != "json" else None
    wanted = _filters(filters)
    with engine() as opened:
        first = parse_moment(since, now) if since else None
        last = parse_moment(until, now) if until else None
        for event in opened.events(since=first, until=last, follow=last is None or last > now):
            if wanted(event):
                facts = _facts(event)
                line = template.render(facts) if template else go_json(facts) if format else _text(event)
                write_bytes(f"{line}\n".encode())


def _filters(texts: Sequence[str]) -> Filters[Event]:
    return parse_filters(
        texts,
        {
            "type": lambda e, text: e.type == text,
            "event": lambda e, text: e.action.partition(":")[0] == text,
            "container": lambda e, text: e.type == "container" and _is(e, text),
            "image": lambda e, text: e.attributes.get("image") == text or (e.type == "image" and _is(e, text)),
            "volume": lambda e, text: e.type == "volume" and _is(e, text),
            "network": lambda e, text: e.type == "network" and _is(e, text),
            "label": lambda e, text: has_label(e.attributes, text),
        },
    )


def _is(event: Event, text: str) -> bool:
    """Whether its subject is called so: by name, id, or the beginning of an id."""
    return text in (event.attributes.get("name"), event.id) or event.id.removeprefix("sha256:").startswith(text)


def _facts(event: Event) -> dict[str, object]:
    """docker's JSON."""
    return {
        "status": event.action,
        "id": event.id,
        "from": event.attributes.get("image", ""),
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": dict(event.attributes)},
        "scope": "local",
        "time": event.nanoseconds // 10**9,
        "timeNano": event.nanoseconds,
    }


def _text(event: Event) -> str:
    stamp = (
        event.time.astimezone().strftime("%Y-%m-%dT%H:%M:%S.%f")
        + f"{event.nanoseconds % 1000:03d}"
        + event.time.astimezone().strftime("%z")
    )
    attributes = ", ".join(f"{name}={value}" for name, value in sorted(event.attributes.items()))
    return f"{stamp} {event.type} {event.action} {event.id}{f' ({attributes})' if attributes else ''}"
