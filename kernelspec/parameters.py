"""What a kernel's container may have: the kernelspec's flags, then the notebook's metadata, then KERNEL_… of the request.

A notebook is somebody else's text: `metadata.sandbox` may take away, never give, unless its owner said `sandbox trust NOTEBOOK`. The
environment comes from whoever may start kernels on this server, so it has the last word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any  # JSON of a notebook

import msgspec
from msgspec.structs import replace

from kernelspec import trust
from sandbox import RunOptions
from sandbox.errors import InvalidOption
from sandbox.options import parse_duration, parse_pids, parse_positive, parse_size

_LONGEST_NOTEBOOK = 256 << 20


class Parameter(msgspec.Struct, frozen=True):
    """A limit that three places can set: `name` in metadata and schema, `flag` of run; `parse` gives what can be compared."""

    name: str
    title: str
    pattern: str
    parse: Callable[[str], Any]  # Any: a number, each flag its own
    tightens: Callable[[Any, Any], bool]

    @property
    def variable(self) -> str:
        """Its name in the environment of a request."""
        return f"KERNEL_{self.name.upper()}"


def _less(wanted: float, given: float | None) -> bool:
    return given is None or given < 0 or 0 <= wanted <= given  # -1: no limit


def _is_none(wanted: str, given: str | None) -> bool:
    return wanted == "none" or wanted == given


PARAMETERS = (
    Parameter("memory", "Memory at most, as 512m or 2g", r"^[0-9]+(\.[0-9]+)?[bkmgBKMG]?$", parse_size, _less),
    Parameter("cpus", "CPUs at most, as 1.5", r"^[0-9]+(\.[0-9]+)?$", parse_positive, _less),
    Parameter("pids_limit", "Processes at most", r"^[0-9]+$", parse_pids, _less),
    Parameter("timeout", "Seconds until the kernel is ended, or as 30m", r"^[0-9]+(\.[0-9]+)?[a-z]*$", parse_duration, _less),
    Parameter("network", "Network", r"^[A-Za-z0-9._:-]+$", str, _is_none),
)


def schema() -> dict[str, Any]:
    """The JSON schema of `metadata.parameters` (JEP 87): what a front end may ask a person for."""
    properties: dict[str, Any] = {each.name: {"type": "string", "title": each.title, "pattern": each.pattern} for each in PARAMETERS}
    properties["network"] = {"type": "string", "title": "Network", "enum": ["", "none"]}
    return {"type": "object", "properties": {name: {**row, "default": ""} for name, row in properties.items()}}


def from_environment(options: RunOptions, env: Mapping[str, str]) -> RunOptions:
    """`options` with the KERNEL_… that are set; InvalidOption."""
    changes = {}
    for each in PARAMETERS:
        text = env.get(each.variable, "")
        if text:
            changes[each.name] = _parsed(each, text, each.variable)
    return replace(options, **changes)


def _parsed(row: Parameter, text: str, place: str) -> Any:  # Any: what the row's flag holds
    try:
        return row.parse(text)
    except (InvalidOption, ValueError) as err:
        raise InvalidOption(f"{place}={text}: {err}", hint=row.title) from err


def from_notebook(options: RunOptions, asked: Mapping[str, Any], *, trusted: bool) -> RunOptions:
    """`options` with what a notebook's metadata asks for: tighter limits, and anything when it is `trusted`; else InvalidOption."""
    rows = {each.name: each for each in PARAMETERS}
    for name, value in asked.items():
        if name in rows:
            wanted = _parsed(rows[name], str(value), f"notebook metadata: sandbox.{name}")
            if rows[name].tightens(wanted, getattr(options, name)) or trusted:
                options = replace(options, **{name: wanted})
            elif name == "network":
                raise _untrusted(f"{name} = {value}")
        elif name == "read_only" and (value is True or trusted):
            options = replace(options, read_only=bool(value))
        elif name == "volumes":
            options = _with_volumes(options, value, trusted=trusted)
        elif name in _GIVING and not trusted:
            raise _untrusted(f"{name} = {value}")
        elif name == "pull" and value in _PULLS:
            options = replace(options, pull=value)
    return options


_GIVING = ("pull", "read_only")
_PULLS = ("always", "missing", "never")


def _with_volumes(options: RunOptions, value: Any, *, trusted: bool) -> RunOptions:  # Any: somebody's JSON
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise InvalidOption("notebook metadata: sandbox.volumes: expected a list of SRC:DST[:ro]")
    if value and not trusted:
        raise _untrusted(f"volumes {', '.join(value)}")
    return replace(options, volume=(*options.volume, *value))


def _untrusted(what: str) -> InvalidOption:
    return InvalidOption(f"notebook metadata: sandbox asks for {what}, and the notebook is not trusted", hint="sandbox trust NOTEBOOK")


def metadata_of(notebook: Path) -> dict[str, Any]:
    """A notebook's `metadata.sandbox`, empty when it has none; InvalidOption when there is one that is no object."""
    if notebook.suffix != ".ipynb" or not notebook.is_file():
        return {}
    if notebook.stat().st_size > _LONGEST_NOTEBOOK:
        raise InvalidOption(f"{notebook.name}: larger than 256 MiB, so its metadata was not read", hint="remove its outputs")
    try:
        document = json.loads(notebook.read_text(encoding="utf-8") or "{}")  # a new one may still be empty
        found = document.get("metadata", {}).get("sandbox", {})
    except (ValueError, AttributeError) as err:
        raise InvalidOption(f"{notebook.name}: is no notebook ({err})") from err
    if not isinstance(found, dict):
        raise InvalidOption(f"{notebook.name}: metadata.sandbox: expected an object")
    return found


def apply_all(options: RunOptions, notebook: Path | None, env: Mapping[str, str], root: Path) -> RunOptions:
    """The kernelspec's `options` < the notebook's metadata < KERNEL_… of `env`; InvalidOption."""
    if notebook is not None:
        asked = metadata_of(notebook)
        options = from_notebook(options, asked, trusted=trust.is_trusted(root, notebook, asked))
    return from_environment(options, env)
