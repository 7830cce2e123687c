"""Magic line + body → BuildCell; `%install KIND PACKAGES` and the other lines that belong to builds. Pure, as `cells`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from magics.flags import HELP, Usage, parse_words, take
from magics.words import first_words
from sandbox.errors import InvalidOption
from sandbox.options import BUILD, BuildOptions, Option, parse_pair


class BuildCell(msgspec.Struct, frozen=True):
    """A `%%dockerfile` cell. `first_line` is the number of the body's first line in the cell (the magic line is 1). `files`: name in
    the context and the Python variable it is made of. `kernel`: the kernelspec to install for the image, True for a name of its own."""

    body: str
    options: BuildOptions
    context: str = "."
    output: str | None = None
    help: bool = False
    first_line: int = 2
    files: tuple[tuple[str, str], ...] = ()
    kernel: str | bool = False
    name: str = ""
    """What to call it in an error when it has no Dockerfile lines of its own: `%install pip`."""

    @property
    def begins_image(self) -> bool:
        """Whether the body stands alone; otherwise it goes on from the cell built before."""
        return next(first_words(self.body), "").upper() in ("FROM", "ARG")


class Installer(msgspec.Struct, frozen=True):
    """How one package manager installs: the command before the packages, what follows them, instructions after it, what it may keep between
    builds; which images have it."""

    command: str
    base: str
    after: str = ""
    then: str = ""
    caches: tuple[str, ...] = msgspec.field(default_factory=tuple)

    def instruction(self, words: Sequence[str]) -> str:
        """The RUN that installs; `words` are packages and flags of its own."""
        mounts = "".join(f"--mount=type=cache,target={place},sharing=locked " for place in self.caches)
        return f"RUN {mounts}{self.command} {' '.join(map(shlex.quote, words))}{self.after}{self.then}"


INSTALLERS: dict[str, Installer] = {
    # Debian's images delete what apt has fetched at once; here it is kept outside the layer, in the build cache.
    "apt": Installer(
        "rm -f /etc/apt/apt.conf.d/docker-clean; apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends",
        "debian or ubuntu",
        caches=("/var/cache/apt", "/var/lib/apt"),
    ),
    # As a variable it is ignored by a pip too old for it.
    "pip": Installer("PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip install", "python", caches=("/root/.cache/pip",)),
    # Node.js does not look for modules where npm puts global ones: in /usr/local, or in /usr where it is of its makers' packages.
    "npm": Installer(
        "npm install --global --no-fund --no-audit", "node", caches=("/root/.npm",),
        then="\nENV NODE_PATH=/usr/local/lib/node_modules:/usr/lib/node_modules",
    ),
    "conda": Installer("conda install --yes", "condaforge/miniforge3", after=" && conda clean --all --yes"),
}

def _this_body(text: str) -> str:
    """`-`, which the body is for `docker build -f -`."""
    if text != "-":
        raise InvalidOption("the cell's body is the Dockerfile", hint="use %container build -f FILE CONTEXT")
    return text


OUTPUT_ROWS: tuple[Option, ...] = (
    Option(("-o",), "output", "put the image into a Python variable", "VAR"),
    Option(("--kernel",), "kernel", "install a Jupyter kernel for the image", "[=NAME]", convert=None),
    HELP,
)

BUILD_ROWS: tuple[Option, ...] = (
    *(row for row in BUILD if row.field not in ("file", "export", "metadata_file")),
    Option(("-f",), "file", "accepted: the cell's body is the Dockerfile", "-", _this_body),
    Option(
        ("--file",), "files", "a file of the context, made of a Python variable (text, bytes, table)", "NAME=VAR", parse_pair, repeat=True
    ),
    *OUTPUT_ROWS,
)

INSTALL_ROWS: tuple[Option, ...] = (
    *(row for row in BUILD if row.field in ("tag", "no_cache", "network", "progress", "quiet", "secret", "memory", "jobs")),
    *OUTPUT_ROWS,
)


def parse_build(words: Sequence[str], body: str, *, first_line: int = 2) -> BuildCell:
    """The `%%dockerfile` cell these words and this body mean; InvalidOption otherwise."""
    values, rest = parse_words(words, BUILD_ROWS, interspersed=True)
    if len(rest) > 1:
        raise InvalidOption(f"{rest[1]}: only one CONTEXT is possible", hint=f"the context is {rest[0]}")
    own = take(values, "output", "help", "files", "kernel")
    values.pop("file", None)
    cell = BuildCell(body, replace(BuildOptions(), **values), rest[0] if rest else ".", first_line=first_line, **own)
    if cell.kernel is True and not cell.options.tag:
        raise InvalidOption("--kernel: the image has no name to install a kernel for", hint="add -t NAME")
    return cell


def parse_install(words: Sequence[str], body: str = "") -> BuildCell:
    """`%install [FLAGS] KIND PACKAGES…`, more of them in the body, as the build cell it stands for; InvalidOption otherwise."""
    values, rest = parse_words(words, INSTALL_ROWS, interspersed=False)
    own = take(values, "output", "help", "kernel")
    options = replace(BuildOptions(), **values)
    if own.get("help"):
        return BuildCell("", options, help=True)
    kind, *packages = rest or ("",)
    if kind not in INSTALLERS:
        raise InvalidOption(f"%install {kind}: not known" if kind else "%install: no package manager named", hint=_KINDS)
    packages += [word for line in body.splitlines() for word in shlex.split(line, comments=True)]
    if not packages:
        raise InvalidOption(f"%install {kind}: no packages named")
    return BuildCell(INSTALLERS[kind].instruction(packages) + "\n", options, name=f"%install {kind}", **own)


def missing_hint(name: str, exit_code: int) -> list[str]:
    """What to say of a failed `%install KIND` (`name`) whose package manager is not in the image; nothing for other failures."""
    kind = name.removeprefix("%install ")
    if kind not in INSTALLERS or exit_code != 127:  # a shell's: not found
        return []
    return [f"  hint: this image has no {kind}; one that is made FROM {INSTALLERS[kind].base} has"]


_KINDS = f"one of {', '.join(INSTALLERS)}; flags of ours stand before it"

USAGES: dict[str, Usage] = {
    "%%dockerfile": Usage(
        "%%dockerfile [FLAGS] [CONTEXT]",
        "Build the cell's body. CONTEXT is a directory (default: the notebook's own; -: none). A body that does not begin with FROM or\n"
        "ARG goes on from the cell built before; running a cell again replaces its layers.",
        BUILD_ROWS,
    ),
    "%dockerfile": Usage(
        "%dockerfile export [FILE]\n       %dockerfile import FILE",
        "The Dockerfile that the build cells so far make together: shown, or written to FILE. Import offers a cell with FILE's text.",
        (),
    ),
    "%install": Usage(
        "%install [FLAGS] apt|pip|npm|conda PACKAGE…",
        "Install packages on top of the build cell before, as one more build cell. What stands after the package manager is its own,\n"
        "flags included. As %%install the body lists more packages.",
        INSTALL_ROWS,
    ),
    "%stages": Usage("%stages", "The stages that the build cells so far make together, as a table.", ()),
}
