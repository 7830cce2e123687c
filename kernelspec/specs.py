"""Kernelspecs of ours: written for an image, found again, taken away (jupyter_client, "Kernel specs")."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any  # kernel.json

import msgspec

from kernelspec import parameters
from kernelspec.container import CONNECTION
from kernelspec.imagekernels import ImageKernel
from sandbox.errors import InvalidOption

PROVISIONER = "sandbox-provisioner"
SANDBOX = "sandbox_kernel"
"""Where a kernel.json has the Sandbox kernel's config, in its metadata."""
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_RESOURCES = Path(__file__).parent / "resources"


class KernelSpec(msgspec.Struct, frozen=True):
    """What a kernelspec says: `flags` are docker run's, `command` the kernel's own (empty: the image's ipykernel). With `sandbox` the
    kernel is the Sandbox kernel, for images that have none. `logos`: pictures by file name (none: ours)."""

    image: str
    name: str
    display_name: str
    language: str = "python"
    flags: Sequence[str] = ()
    command: Sequence[str] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    mount: bool = True
    root: str = ""
    curve: bool = False
    """Whether the kernel inside speaks CurveZMQ."""
    sandbox: bool = False
    debugger: bool = True
    interrupt_mode: str = "signal"
    logos: Mapping[str, bytes] = msgspec.field(default_factory=dict)

    def kernel_json(self, directory: Path) -> dict[str, Any]:
        """kernel.json in its final `directory`: for front ends with provisioners, and by its argv for those without."""
        return self._of_host(directory) if self.sandbox else self._of_image(directory)

    def _of_image(self, directory: Path) -> dict[str, Any]:
        config = {"image": self.image, "flags": list(self.flags), "command": list(self.command), "mount": self.mount, "root": self.root}
        return {
            "argv": [sys.executable, "-m", "kernelspec.launcher", str(directory), CONNECTION],
            "display_name": self.display_name,
            "language": self.language,
            "interrupt_mode": self.interrupt_mode,
            "env": dict(self.env),
            "metadata": {
                "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config},
                "parameters": parameters.schema(),
                "debugger": self.debugger,
                **({"supported_encryption": "curve"} if self.curve else {}),
            },
        }

    def _of_host(self, directory: Path) -> dict[str, Any]:
        """The kernel is a process of the host's: any front end can start it, and knows nothing of the container."""
        config = {
            "image": self.image, "flags": list(self.flags), "language": self.language, "env": dict(self.env), "mount": self.mount,
            "root": self.root,
        }  # fmt: skip
        return {
            "argv": [sys.executable, "-m", "kernelspec.kernel", str(directory), "-f", CONNECTION],
            "display_name": self.display_name,
            "language": self.language,
            "interrupt_mode": "signal",
            "metadata": {SANDBOX: config, "parameters": parameters.schema(), "debugger": False, **_encryption()},
        }


def _encryption() -> dict[str, Any]:
    """What the host's ipykernel says of CurveZMQ."""
    from ipykernel.kernelspec import get_kernel_dict

    said = get_kernel_dict().get("metadata", {}).get("supported_encryption")
    return {"supported_encryption": said} if said else {}


def with_kernel(spec: KernelSpec, kernel: ImageKernel) -> KernelSpec:
    """The kernelspec for a kernel that the image brings. Its environment goes by -e: Jupyter would fill $NAME with the server's own."""
    env = [word for name, value in kernel.env.items() for word in ("-e", f"{name}={value}")]
    return msgspec.structs.replace(
        spec,
        command=list(kernel.argv),
        flags=[*env, *spec.flags],
        language=kernel.language or "python",
        interrupt_mode=kernel.interrupt_mode,
        curve=kernel.curve,
        debugger=bool(kernel.metadata.get("debugger")),
        logos=kernel.logos,
    )


class Place(msgspec.Struct, frozen=True):
    """Where kernelspecs go: the machine's directory, the user's (`user`), this environment's (`sys_prefix`), or below `prefix`."""

    user: bool = False
    sys_prefix: bool = False
    prefix: str | None = None

    def directory(self, name: str) -> Path:
        """The kernelspec's directory; InvalidOption when several places were named."""
        from jupyter_core.paths import SYSTEM_JUPYTER_PATH, jupyter_data_dir

        if self.user + self.sys_prefix + (self.prefix is not None) > 1:
            raise InvalidOption("--user, --sys-prefix, --prefix: one at most")
        if self.user or (os.geteuid() != 0 and not self.sys_prefix and self.prefix is None):
            return Path(jupyter_data_dir()) / "kernels" / name
        if self.sys_prefix or self.prefix is not None:
            return Path(self.prefix or sys.prefix) / "share/jupyter/kernels" / name
        return Path(SYSTEM_JUPYTER_PATH[0]) / "kernels" / name


def install(spec: KernelSpec, place: Place, *, replace: bool = False) -> Path:
    """Write the kernelspec; its directory. InvalidOption when the name is no name, or taken and not to be replaced."""
    if not _NAME.fullmatch(spec.name):
        raise InvalidOption(f"kernel name {spec.name!r}: expected letters, digits and ._-", hint="give one with --name")
    directory = place.directory(spec.name)
    if directory.exists() and not replace:
        raise InvalidOption(f"kernel {spec.name}: exists already in {directory.parent}", hint="--replace writes over it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{spec.name}.", dir=directory.parent))
    fresh.chmod(0o755)
    (fresh / "kernel.json").write_text(json.dumps(spec.kernel_json(directory), indent=1) + "\n", encoding="utf-8")
    for logo in () if spec.logos else _RESOURCES.glob("logo-*"):
        shutil.copy(logo, fresh)
    for name, data in spec.logos.items():
        (fresh / name).write_bytes(data)
    if directory.exists():
        shutil.rmtree(directory)
    fresh.rename(directory)
    return directory


def installed() -> dict[str, dict[str, Any]]:
    """Our kernelspecs that Jupyter finds here: name → directory and provisioner config."""
    from jupyter_client.kernelspec import KernelSpecManager

    found = {}
    for name, entry in KernelSpecManager().get_all_specs().items():
        metadata = entry["spec"].get("metadata", {})
        provisioner = metadata.get("kernel_provisioner", {})
        is_provisioned = provisioner.get("provisioner_name") == PROVISIONER
        if is_provisioned or SANDBOX in metadata:
            found[name] = {
                "directory": entry["resource_dir"],
                "display_name": entry["spec"]["display_name"],
                "kernel": "of the image" if is_provisioned else "sandbox",
                "bundled": SANDBOX in metadata and not metadata[SANDBOX].get("image"),
                "config": provisioner.get("config", {}) if is_provisioned else metadata[SANDBOX],
            }
    return found


def remove(name: str) -> Path:
    """Take one of our kernelspecs away; InvalidOption when there is none of that name."""
    found = installed().get(name)
    if found is None:
        raise InvalidOption(f"kernel {name}: not one of ours", hint="see `sandbox kernel list`")
    directory = Path(found["directory"])
    shutil.rmtree(directory)
    return directory


def default_name(image: str) -> str:
    """A kernel's name made of its image's: the last part, without registry and with its tag unless that is latest."""
    base, _, tag = image.rpartition("/")[2].partition(":")
    return re.sub(r"[^A-Za-z0-9._-]", "-", base if tag in ("", "latest") else f"{base}-{tag}")
