"""The kernels an image brings: kernelspecs found in it (an IRkernel, a bash kernel), and ipykernel without one."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any  # somebody's JSON

import msgspec

from kernelspec.container import CONNECTION, START
from sandbox import Engine, RunOptions
from sandbox.errors import ImageError, InvalidOption
from sandbox.image.store import Image
from sandbox.image.tree import Tree
from sandbox.runtime.init.program import DEFAULT_PATH

_PLACES = ("/usr/local/share/jupyter/kernels", "/usr/share/jupyter/kernels", "/opt/conda/share/jupyter/kernels")
_LARGEST = 1 << 20
"""Bytes of a kernel.json or a logo at most."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PROBE = """\
import importlib.util, json
found = importlib.util.find_spec("ipykernel") is not None
curve = []
try:
    from ipykernel.kernelspec import get_kernel_dict
    curve = get_kernel_dict().get("metadata", {}).get("supported_encryption", [])
except Exception:
    pass
print(json.dumps([found, curve]))
"""
_PROBE_SECONDS = 60.0
_PYTHONS = ("python3", "python")


class ImageKernel(msgspec.Struct, frozen=True):
    """A kernel of an image. `argv` as in kernel.json, with paths of the image; `logos`: its pictures by file name."""

    name: str
    argv: tuple[str, ...]
    language: str
    display_name: str = ""
    interrupt_mode: str = "signal"
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    metadata: Mapping[str, Any] = msgspec.field(default_factory=dict)
    logos: Mapping[str, bytes] = msgspec.field(default_factory=dict)

    @property
    def is_python(self) -> bool:
        """Whether its language is Python."""
        return self.language.lower() == "python"

    @property
    def curve(self) -> bool:
        """Whether it speaks CurveZMQ."""
        said = self.metadata.get("supported_encryption", ())
        return "curve" in ([said] if isinstance(said, str) else said)


def find_kernels(engine: Engine, image: Image) -> list[ImageKernel]:
    """The kernels of an image, the one to take by default first: its Python's, else by name. To ask its Python, that is run once,
    without network."""
    found = {kernel.name: kernel for kernel in _kernelspecs(image, engine.image_files(image))}
    if not any(kernel.is_python for kernel in found.values()) and (kernel := _ipykernel(engine, image)):
        found[kernel.name] = kernel
    return sorted(found.values(), key=lambda kernel: (kernel.name != "python3", not kernel.is_python, kernel.name))


def choose_kernel(kernels: list[ImageKernel], name: str | None, image: str) -> ImageKernel | None:
    """The one of that name, the first without a name, None when there is none; InvalidOption."""
    if name is None:
        return kernels[0] if kernels else None
    chosen = next((kernel for kernel in kernels if kernel.name == name), None)
    if chosen is None:
        raise InvalidOption(f"kernel {name}: not in image {image}", hint=f"there are: {', '.join(k.name for k in kernels) or 'none'}")
    return chosen


def _kernelspecs(image: Image, tree: Tree) -> Iterator[ImageKernel]:
    seen = set()
    for place in _directories(image):
        directory = tree.lookup(place, follow=True)
        for entry in tree.scandir(place) if directory is not None and directory.is_dir else ():
            kernel = _read(tree, f"{place}/{entry.name}", entry.name) if entry.is_dir and entry.name not in seen else None
            if kernel is not None:
                seen.add(entry.name)
                yield kernel


def _directories(image: Image) -> list[str]:
    """Where Jupyter would look inside: JUPYTER_PATH, the home, beside each bin/ of PATH, the usual places."""
    env = dict(each.split("=", 1) for each in image.config.value.config.env or () if "=" in each)
    named = [f"{each}/kernels" for each in env.get("JUPYTER_PATH", "").split(":") if each]
    home = [f"{env.get('HOME', '/root')}/.local/share/jupyter/kernels"]
    programs = [each for each in env.get("PATH", DEFAULT_PATH).split(":") if each.endswith("/bin")]
    beside = [posixpath.dirname(each) + "/share/jupyter/kernels" for each in programs]
    return list(dict.fromkeys([*named, *home, *beside, *_PLACES]))


def _read(tree: Tree, directory: str, name: str) -> ImageKernel | None:
    """The kernelspec in a directory of the image; None when it is none, or one that we cannot make sense of."""
    try:
        spec = json.loads(tree.read(f"{directory}/kernel.json", _LARGEST))
        argv = tuple(str(word).replace("{resource_dir}", directory) for word in spec["argv"])
        env, metadata = spec.get("env") or {}, spec.get("metadata") or {}
    except (OSError, ImageError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not any(CONNECTION in word for word in argv) or not isinstance(env, dict) or not isinstance(metadata, dict):
        return None
    return ImageKernel(
        name=name.lower(),
        argv=_with_start(argv),
        language=str(spec.get("language", "")),
        display_name=str(spec.get("display_name", "")),
        interrupt_mode="message" if spec.get("interrupt_mode") == "message" else "signal",
        env={str(key): str(value) for key, value in env.items()},
        metadata={key: metadata[key] for key in ("debugger", "supported_encryption") if key in metadata},
        logos=dict(_logos(tree, directory)),
    )


def _logos(tree: Tree, directory: str) -> Iterator[tuple[str, bytes]]:
    """PNGs only: an SVG of an image's would be a page of the server's, with scripts."""
    for name in ("logo-64x64.png", "logo-32x32.png"):
        try:
            data = tree.read(f"{directory}/{name}", _LARGEST)
        except OSError:
            continue
        if data.startswith(_PNG):
            yield name, data


def _with_start(argv: tuple[str, ...]) -> tuple[str, ...]:
    """An ipykernel tells in its first cell why the one before it ended."""
    is_ipykernel = any(word in ("ipykernel_launcher", "ipykernel") for word in argv)
    return (*argv, f"--IPKernelApp.exec_files={START}") if is_ipykernel else argv


def _ipykernel(engine: Engine, image: Image) -> ImageKernel | None:
    python = next((name for name in _PYTHONS if engine.has_program(image, name)), None)
    if python is None:
        return None
    options = RunOptions(rm=True, network="none", entrypoint=python)
    done = engine.run(image, ["-c", _PROBE], options=options, timeout=_PROBE_SECONDS)
    try:
        found, curve = json.loads(done.stdout)
    except (ValueError, TypeError):
        return None
    argv = _with_start((python, "-m", "ipykernel_launcher", "-f", CONNECTION))
    metadata = {"debugger": True, **({"supported_encryption": curve} if curve else {})}
    return ImageKernel("python3", argv, "python", metadata=metadata) if found is True else None
