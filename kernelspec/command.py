"""`sandbox kernel`: install, list, remove and check kernelspecs that run in containers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec

from kernelspec import imagekernels, parameters, specs
from kernelspec import trust as trusted
from kernelspec.container import default_command
from kernelspec.dialects import is_known
from kernelspec.environments import look_at
from kernelspec.flags import idle_flags, image_and_flags
from kernelspec.orphans import KERNEL_LABEL
from sandbox import Engine
from sandbox.cli.completing import complete_images, offering
from sandbox.cli.invocation import engine
from sandbox.errors import InvalidOption, SandboxError

_FREE = {"ignore_unknown_options": True, "help_option_names": ["--help"]}


@click.command("install", context_settings=_FREE)
@click.option("--name", help="The kernelspec's name (default: the image's).")
@click.option("--display-name", help="What the launcher shows.")
@click.option("--kernel", "wanted", metavar="NAME", help="Which of the image's own kernels (default: its Python's, else the first).")
@click.option("--language", metavar="LANG", help="Not a kernel of the image: the Sandbox kernel with its python, javascript, bash or sh.")
@click.option("--user", is_flag=True, help="Install for this user.")
@click.option("--sys-prefix", is_flag=True, help="Install into this Python environment.")
@click.option("--prefix", metavar="DIR", help="Install below DIR/share/jupyter.")
@click.option("--replace", is_flag=True, help="Write over a kernelspec of that name.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="An environment variable of the kernel.")
@click.option("--kernel-cmd", metavar="JSON", help="How the kernel is started, as a JSON list with {connection_file}.")
@click.option("--no-mount", is_flag=True, help="Do not mount the notebook's directory at its own path.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="IMAGE [RUN FLAGS]", shell_complete=complete_images)
def install(
    name: str | None, display_name: str | None, wanted: str | None, language: str | None, user: bool, sys_prefix: bool, prefix: str | None,
    replace: bool, env: tuple[str, ...], kernel_cmd: str | None, no_mount: bool, words: tuple[str, ...],
) -> int:  # fmt: skip
    """Make a kernel of an image: of a Jupyter kernel in it, else the Sandbox kernel, which runs cells in any image with Python, Node.js,
    bash or sh. Every flag of `sandbox run` may follow: limits, volumes, network."""
    image, flags = image_and_flags(words)
    if wanted and (language or kernel_cmd):
        raise InvalidOption("--kernel: goes with neither --language nor --kernel-cmd")
    base = specs.KernelSpec(
        image=image,
        name=name or specs.default_name(image),
        display_name=display_name or f"{specs.default_name(image)} (sandbox)",
        flags=flags,
        env=dict(_pair(entry) for entry in env),
        mount=not no_mount,
    )
    with engine() as opened:
        base = msgspec.structs.replace(base, root=str(opened.root))
        if kernel_cmd:
            opened.image(image)
            spec, said = msgspec.structs.replace(base, command=_command(kernel_cmd), language=language or "python"), ""
        else:
            spec, said = _kernel_of(opened, base, wanted, language)
    click.echo(f"installed {spec.name} in {specs.install(spec, specs.Place(user, sys_prefix, prefix), replace=replace)}")
    if said:
        click.echo(said)
    if idle := idle_flags(flags):
        click.echo(f"{', '.join(idle)}: nothing to do, Jupyter starts a kernel and ends it")
    return 0


def _kernel_of(opened: Engine, base: specs.KernelSpec, wanted: str | None, language: str | None) -> tuple[specs.KernelSpec, str]:
    """The kernelspec for the image's own kernel, or for the Sandbox kernel; and what the person should know about the choice."""
    image = opened.image(base.image)
    if language is None or not is_known(language):
        found = imagekernels.find_kernels(opened, image)
        spoken_there = [each for each in found if language is None or each.language.lower() == language.lower()]
        kernel = imagekernels.choose_kernel(spoken_there, wanted, base.image)
        if kernel is not None:
            others = ", ".join(each.name for each in found if each is not kernel)
            said = f"kernel {kernel.name} of the image"
            return specs.with_kernel(base, kernel), f"{said}; others, by --kernel: {others}" if others else said
    environment = look_at(opened, base.image, language or "")
    spoken = environment.dialect.language
    return (
        msgspec.structs.replace(base, sandbox=True, language=spoken),
        f"the Sandbox kernel, with the image's {environment.program}",
    )


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not name or not equals:
        raise InvalidOption(f"--env {entry}: expected NAME=VALUE")
    return name, value


def _command(text: str) -> list[str]:
    try:
        words = json.loads(text)
    except ValueError as err:
        raise InvalidOption(
            f"--kernel-cmd: {err}", hint='write ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]'
        ) from err
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
        raise InvalidOption("--kernel-cmd: expected a JSON list of words")
    if not any("{connection_file}" in word for word in words):
        raise InvalidOption("--kernel-cmd: {connection_file} is missing")
    return words


@click.command("list")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table")
def list_(style: str) -> int:
    """List the kernels that run in containers."""
    found = specs.installed()
    if style == "json":
        click.echo(json.dumps(found))
        return 0
    for name, entry in found.items():
        image = "(of the notebook)" if entry["bundled"] else entry["config"].get("image", "")
        click.echo(f"{name:20} {image:30} {' '.join(entry['config'].get('flags', []))}".rstrip())
    return 0


@click.command("remove")
@click.option("--all", "everything", is_flag=True, help="Remove all that were made of images.")
@click.argument("names", nargs=-1, shell_complete=offering(lambda names: specs.installed()))
def remove(everything: bool, names: tuple[str, ...]) -> int:
    """Remove kernels of ours."""
    if not names and not everything:
        raise InvalidOption("no kernel named", hint="give names, or --all")
    for name in [name for name, entry in specs.installed().items() if not entry["bundled"]] if everything else names:
        click.echo(f"removed {specs.remove(name)}")
    return 0


@click.command("doctor")
def doctor() -> int:
    """Say of each kernel whether it could start. The status is 1 when one could not."""
    failed = False
    for name, entry in specs.installed().items():
        reason = _obstacle(entry["config"], is_sandbox=entry["kernel"] == "sandbox")
        failed |= bool(reason)
        click.echo(f"{'✗' if reason else '✓'} {name}{': ' + reason if reason else ''}")
    return int(failed)


def _obstacle(config: Mapping[str, object], *, is_sandbox: bool) -> str:
    name = str(config.get("image") or "")
    try:
        with Engine(str(config.get("root") or "") or None) as opened:
            if is_sandbox:
                if name:  # else a notebook's build cell makes it
                    look_at(opened, name, str(config.get("language") or ""))
                return ""
            image = opened.image(name)
            words = config.get("command") or default_command(opened, name)
            program = str(next(iter(words))) if isinstance(words, list | tuple) else ""
            return "" if opened.has_program(image, program) else f"{program}: not in the image"
    except (SandboxError, OSError) as err:
        return str(err)


@click.command("reset")
@click.option("--all", "everything", is_flag=True, help="Reset all kernels.")
@click.argument("kernels", nargs=-1)
def reset(everything: bool, kernels: tuple[str, ...]) -> int:
    """Drop the containers of kernels, by their ids: a server that runs one starts it again, with the image's files."""
    if not kernels and not everything:
        raise InvalidOption("no kernel named", hint="give ids of kernels or containers, or --all")
    with engine() as opened:
        found = {each.labels[KERNEL_LABEL]: each for each in opened.containers(all=True) if KERNEL_LABEL in each.labels}
        chosen = set(found) if everything else {_kernel_named(name, {key: each.id for key, each in found.items()}) for name in kernels}
        for key in sorted(chosen):
            found[key].remove(force=True, volumes=True)
            click.echo(f"reset {key}")
    return 0


def _kernel_named(name: str, ids: dict[str, str]) -> str:
    """The one kernel whose id, or whose container's, begins with `name`."""
    close = [kernel for kernel, container in ids.items() if name and (kernel.startswith(name) or container.startswith(name))]
    if len(close) != 1:
        raise InvalidOption(f"kernel {name}: {'several begin so' if close else 'not there'}", hint="its id is in Jupyter Server's log")
    return close[0]


@click.command("trust")
@click.option("--forget", is_flag=True, help="Take it back.")
@click.option("--list", "listing", is_flag=True, help="List the notebooks that are trusted.")
@click.argument("notebooks", nargs=-1, type=click.Path(path_type=Path))
def trust(forget: bool, listing: bool, notebooks: tuple[Path, ...]) -> int:
    """Let notebooks' `metadata.sandbox` give their kernels more than the kernelspec does: volumes, network, pulls, higher limits.

    The decision holds for what the metadata says now: whoever changes it has to ask again.
    """
    if not notebooks and not listing:
        raise InvalidOption("no notebook named", hint="sandbox trust NOTEBOOK, or --list")
    with engine() as opened:
        for notebook in notebooks:
            click.echo(_forget(opened.root, notebook) if forget else _trust(opened.root, notebook))
        for place in trusted.listed(opened.root) if listing else ():
            click.echo(place)
    return 0


def _trust(root: Path, notebook: Path) -> str:
    if not notebook.is_file():
        raise InvalidOption(f"{notebook}: no such notebook")
    asked = parameters.metadata_of(notebook)
    if not asked:
        raise InvalidOption(f"{notebook}: asks for nothing", hint="metadata.sandbox of the notebook is empty")
    trusted.trust(root, notebook, asked)
    return f"trusted {notebook}: {json.dumps(asked, sort_keys=True)}"


def _forget(root: Path, notebook: Path) -> str:
    if not trusted.forget(root, notebook):
        raise InvalidOption(f"{notebook}: was not trusted", hint="sandbox trust --list")
    return f"no longer trusted: {notebook}"
