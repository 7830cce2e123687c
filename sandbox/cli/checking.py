"""`sandbox build --check`: what the checks find, with the lines of the Dockerfile, as buildx shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sandbox.build.source import Span

if TYPE_CHECKING:
    from sandbox.build.dockerfile import Dockerfile
    from sandbox.build.rules import Finding


def show_findings(dockerfile: Dockerfile, found: tuple[Finding, ...]) -> int:
    """Print each finding with its place; 1 when there are any, else 0."""
    if not found:
        click.echo("Check complete, no warnings found.")
        return 0
    count = f"{len(found)} warning{'s' if len(found) > 1 else ''}"
    click.echo(f"Check complete, {count} found!")
    for one in found:
        click.echo(f"\nWARNING: {one.rule}\n{one.description}\n{dockerfile.source.name} line {one.line}: {one.message}")
        click.echo(dockerfile.source.excerpt(_span(dockerfile, one.line)))
    return 1


def _span(dockerfile: Dockerfile, line: int) -> Span:
    return next((i.span for i in dockerfile.instructions if i.span.first == line), Span(line, line))
