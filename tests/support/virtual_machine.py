"""A virtual machine with Debian's kernel and this host's files, read-only below an overlay: for what this host's Linux is not set up for.

Emulated, not /dev/kvm: a nested KVM may start and never come to the kernel, and nothing here needs its speed."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_VIRTIOFSD = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
_MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtiofs", "overlay")
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
while read module; do insmod "/modules/$module" || echo "insmod $module failed"; done < /modules/order
mount -t virtiofs -o ro host /host || echo "no host"
mount -t ext4 /dev/vda /disk && mkdir -p /disk/upper /disk/work /disk/mnt
mkdir -p /disk/upper/etc && cp -p /host/etc/passwd /host/etc/group /disk/upper/etc/  # the host's may be exchanged meanwhile
mount -t overlay -o lowerdir=/host,upperdir=/disk/upper,workdir=/disk/work overlay /root || echo "no root"
mount --move /dev /root/dev; mount -t proc proc /root/proc; mount -t sysfs sys /root/sys
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs tmpfs /root/dev/shm; mount -t devpts devpts /root/dev/pts
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount --bind /disk/mnt /root/mnt
ifconfig lo 127.0.0.1
"""
_ALONE = """umount /proc /sys
exec switch_root /root /bin/sh -c '/bin/sh /mnt/script < /dev/null; echo "MACHINE-STATUS=$?"; exec /bin/busybox poweroff -f'
"""
"""Not in a chroot: nobody there may make a user namespace (user_namespaces(7))."""
_SYSTEMD = """umount /root/sys/fs/cgroup
mkdir -p /root/run /root/etc/systemd/system
cat > /root/etc/systemd/system/machine.service << END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c '/bin/sh /mnt/script < /dev/null; echo MACHINE-STATUS=\\$?; exec systemctl poweroff --force --force'
END
umount /proc /sys
exec switch_root /root /lib/systemd/systemd --unit=machine.service
"""
"""The script as a service of systemd's, which is the machine's init; the only one: the host's own have no business here."""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and its modules."""

    image: Path
    release: str


def why_not() -> str | None:
    """Why no machine can be started here; None when one can."""
    for tool in ("qemu-system-x86_64", "mkfs.ext4", "cpio", "busybox", "modprobe"):
        if shutil.which(tool) is None:
            return f"{tool}: not installed"
    if not any(os.access(path, os.X_OK) for path in _VIRTIOFSD):
        return "virtiofsd: not installed"
    return None if find_kernel() else "no kernel of Debian's (linux-image-cloud-amd64) in /boot"


def find_kernel() -> Kernel | None:
    """The newest kernel that is there with its modules."""
    found = [Kernel(path, path.name.removeprefix("vmlinuz-")) for path in Path("/boot").glob("vmlinuz-*")]
    usable = [kernel for kernel in found if Path("/lib/modules", kernel.release).is_dir()]
    return max(usable, key=lambda kernel: [int(part) for part in re.findall(r"\d+", kernel.release)], default=None)


def run_in_machine(
    script: str, place: Path, *, parameters: str = "", seconds: float = 100.0, systemd: bool = False, files: Path | None = None
) -> tuple[int, str]:
    """Boot, run a shell script as root with this host's files, power off: its status and everything on the console. `systemd`: it is
    the machine's init, else nothing is. `files` are in the machine's /mnt. Raises TimeoutError when it is not done in time, RuntimeError
    when it did not come to the script's end."""
    kernel = find_kernel()
    assert kernel is not None
    _make_initramfs(place, kernel.release, _INIT + (_SYSTEMD if systemd else _ALONE))
    _make_disk(place, script, files)
    daemon = _start_virtiofsd(place / "fs.sock")
    try:
        console = _boot(place, kernel, parameters, seconds)
    finally:
        daemon.terminate()
        daemon.wait(10)
    match = re.search(r"MACHINE-STATUS=(\d+)", console)
    if match is None:
        raise RuntimeError(f"the machine did not come to the end:\n{console[-4000:]}")
    return int(match[1]), console


def _make_initramfs(place: Path, release: str, init: str) -> None:
    root = place / "initramfs"
    for name in ("bin", "modules", "proc", "sys", "dev", "host", "disk", "root"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    shown = "".join(
        subprocess.run(["modprobe", "-S", release, "--show-depends", name], capture_output=True, text=True, check=True).stdout
        for name in _MODULES
    )
    order = list(dict.fromkeys(line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")))
    for module in order:
        shutil.copy(module, root / "modules")
    (root / "modules/order").write_text("".join(f"{Path(module).name}\n" for module in order))
    (root / "init").write_text(init)
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in root.rglob("*")) + "\n"
    with (place / "initramfs.cpio").open("wb") as out:
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names.encode(), stdout=out, check=True)


def _make_disk(place: Path, script: str, files: Path | None) -> None:
    tree = place / "tree"
    if files is not None:
        shutil.copytree(files, tree / "mnt", symlinks=True)
    (tree / "mnt").mkdir(parents=True, exist_ok=True)
    (tree / "mnt/script").write_text(script)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, place / "disk.img", "2G"], check=True)


def _start_virtiofsd(listen: Path) -> subprocess.Popen[bytes]:
    program = next(path for path in _VIRTIOFSD if os.access(path, os.X_OK))
    argv = [program, f"--socket-path={listen}", "-o", "source=/", "-o", "cache=auto", "-o", "sandbox=chroot", "--rlimit-nofile=0"]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # it holds every file open that the machine has seen
    daemon = subprocess.Popen(["prlimit", f"--nofile={hard}:{hard}", *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not listen.exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"virtiofsd did not start (status {daemon.poll()})")
        os.sched_yield()
    return daemon


def _boot(place: Path, kernel: Kernel, parameters: str, seconds: float) -> str:
    argv = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G", "-nodefaults", "-no-reboot",
        "-display", "none", "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(place / "initramfs.cpio"),
        "-append", f"console=ttyS0 quiet panic=-1 {parameters}",
        "-object", "memory-backend-memfd,id=mem,size=2G,share=on", "-numa", "node,memdev=mem",
        "-drive", f"file={place / 'disk.img'},if=virtio,format=raw,cache=unsafe",
        "-chardev", f"socket,id=fs,path={place / 'fs.sock'}", "-device", "vhost-user-fs-pci,chardev=fs,tag=host",
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as err:
        raise TimeoutError(
            f"the machine was not done after {seconds:g} s:\n{(err.stdout or b'')[-4000:].decode(errors='replace')}"
        ) from err
    return (done.stdout + done.stderr).decode(errors="replace")


def python_script(*arguments: str, repository: Path) -> str:
    """A shell script that runs this Python with these arguments in the repository, its temporary files on the machine's disk."""
    words = " ".join(f"'{argument}'" for argument in arguments)
    path = os.environ.get("PATH", "/usr/bin:/bin")
    return f"export PATH='{path}' HOME=/mnt TMPDIR=/mnt PYTHONDONTWRITEBYTECODE=1\ncd '{repository}'\nexec '{sys.executable}' {words}\n"
