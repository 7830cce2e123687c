"""Rows of sandbox.options as click options, and back into their structures. Verb-specific flags stay with their verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from sandbox.cli.completing import values_of
from sandbox.errors import InvalidOption
from sandbox.options import Option

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class Converted(click.ParamType[Any]):  # Any: what a row's converter makes
    """A value that one of sandbox.options' converters reads."""

    def __init__(self, convert: Callable[[str], Any], name: str) -> None:
        self.reader, self.name = convert, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value of this text; click's BadParameter, with the hint, when it cannot be read."""
        if not isinstance(value, str):
            return value
        try:
            return self.reader(value)
        except InvalidOption as err:
            wrong = click.BadParameter(str(err), ctx, param)
            wrong.hint = err.hint  # type: ignore[attr-defined]  # sandbox.cli.failures prints it
            raise wrong from err


def option_of(row: Option) -> click.Option:
    """One row as a click option; a flag that was not given leaves None."""
    if row.is_switch:
        return click.Option([*row.names, row.field], is_flag=True, default=None, help=row.help)
    kind = Converted(row.convert or str, row.field)
    make = partial(ValueLeftOut, row.alone) if row.alone else click.Option
    return make([*row.names, row.field], type=kind, multiple=row.repeat, metavar=row.metavar, help=row.help, shell_complete=values_of(row))


class ValueLeftOut(click.Option):
    """One that stands for `alone` unless `=` gives it a value. (click's own kind would take the next word.)"""

    def __init__(self, alone: str, *args: Any, **settings: Any) -> None:  # Any: click's
        super().__init__(*args, **settings)
        self.alone = alone


class VerbCommand(click.Command):
    """A verb: switches also take `=true` and `=false` as docker's do; `=false` of one that is on by itself is its other name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after the switches with a value became switches without."""
        switches: set[str] = set()
        valued: set[str] = set()
        opposites: dict[str, str] = {}
        alone: dict[str, str] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option):
                (switches if param.is_flag else valued).update(param.opts)
                opposites.update(zip(param.opts, param.secondary_opts, strict=False))
            if isinstance(param, ValueLeftOut):
                alone.update(dict.fromkeys(param.opts, f"={param.alone}"))
        args = [word + alone.get(word, "") for word in args]
        plain = plain_switches(args, switches, valued, interspersed=ctx.allow_interspersed_args, opposites=opposites)
        return super().parse_args(ctx, plain)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Flags, as far as they go on this line: after `run IMAGE` they are the program's."""
        given = any(isinstance(param, click.Argument) and ctx.params.get(param.name or "") for param in self.params)
        return [] if given and not ctx.allow_interspersed_args else super().shell_complete(ctx, incomplete)


def plain_switches(
    args: Sequence[str], switches: set[str], valued: set[str], *, interspersed: bool, opposites: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """`--rm=true` → `--rm`, `--rm=false` → nothing or what is in `opposites`, as far as flags go on this line."""
    plain: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.partition("=")
        is_flag = word.startswith("-") and word != "-"
        if word == "--" or (not is_flag and not interspersed):
            return [*plain, word, *words]
        if equals and name in switches and value in ("true", "false"):
            plain += [name] if value == "true" else [opposites[name]] if name in opposites else []
            continue
        plain.append(word)
        if takes_next(word, switches, valued):
            plain += [value for value in [next(words, None)] if value is not None]
    return plain


def takes_next(word: str, switches: set[str], valued: set[str]) -> bool:
    """Whether the value of this flag is the next word (`--name x`, `-e x`, `-ite x`; not `--name=x`, `-ex`)."""
    if word.startswith("--"):
        return word in valued
    letters = word[1:]
    for place, letter in enumerate(letters, 1):
        if f"-{letter}" in valued:
            return place == len(letters)
        if f"-{letter}" not in switches:
            return False
    return False


def verb(name: str, rows: Sequence[Option] = (), *, interspersed: bool = True) -> Callable[[Callable[..., int | None]], click.Command]:
    """Decorator: a function as verb `name` with the rows' options; its docstring is the help. With `interspersed=False`
    the first argument that is no flag ends the flags, as docker's `run IMAGE CMD --its-flags` needs."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        settings = {"help_option_names": ["--help"], "allow_interspersed_args": interspersed}
        command = click.command(name, cls=VerbCommand, context_settings=settings)(function)
        command.params = [*command.params, *map(option_of, rows)]
        return command

    return decorate
