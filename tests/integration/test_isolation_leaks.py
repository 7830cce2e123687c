"""Nothing leaks in and nothing gets out: each attack watches a canary on the host, and each check has a twin that can fail."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from sandbox.containers import Container
from sandbox.engine import Engine
from sandbox.errors import InvalidOption
from sandbox.options import RunOptions
from tests.support.attacks import OVERWRITE
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]
IMAGE = "localhost/python"
UNCONFINED = (("seccomp", "unconfined"),)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, python_tar: Path, busybox_tar: Path) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("leaks") / "engine") as made:
        made.load(python_tar)
        made.import_image(busybox_tar, "busybox")
        yield made
        for container in made.containers(all=True):
            container.remove(force=True)


def python(engine: Engine, code: str, *arguments: str, options: RunOptions = RunOptions(rm=True)) -> str:
    """What a Python text prints inside."""
    done = engine.run(IMAGE, ["python3", "-c", code, *arguments], options=options)
    assert done.exit_code == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def shell(engine: Engine, script: str, options: RunOptions = RunOptions(rm=True)) -> str:
    return engine.run("busybox", ["sh", "-c", script], options=options).stdout.decode().strip()


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file of the host whose text must be the same afterwards."""
    path = tmp_path / "canary"
    path.write_text("alive")
    yield path
    assert path.read_text() == "alive"


# Mounts that spread ---------------------------------------------------------------------------------------------------

MOUNT_INSIDE = "mount -t tmpfs inside /data/below && touch /data/below/made; ls /data/below; echo end; exec sleep 100"


@requires("root")
@pytest.mark.parametrize("userns", ["private", "host"])
def test_mount_inside_a_volume_stays_inside(engine: Engine, shared_directory: Path, userns: Literal["private", "host"]) -> None:
    volume = (f"{shared_directory}:/data",)
    options = RunOptions(userns=userns, volume=volume, cap_add=("SYS_ADMIN",), security_opt=UNCONFINED)
    container = engine.start("busybox", ["sh", "-c", MOUNT_INSIDE], options=options)
    try:
        said = list(itertools.takewhile(lambda line: line != b"end\n", (line.data for line in container.logs(follow=True))))
        assert said == [b"made\n"]  # it did mount, and is still there while the host is looked at
        assert not os.path.ismount(shared_directory / "below")
    finally:
        container.remove(force=True)


@requires("root")
def test_mount_below_a_shared_bind_spreads(shared_directory: Path, tmp_path: Path) -> None:
    """The twin: without an end to the propagation the host sees it."""
    other = tmp_path / "bind"
    other.mkdir()
    subprocess.run(["mount", "--bind", shared_directory, other], check=True)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "inside", other / "below"], check=True)
        assert os.path.ismount(shared_directory / "below")
    finally:
        subprocess.run(["umount", "--recursive", other], check=True)


WAIT_FOR_HOST = "until test -e /data/host/canary; do test -e /data/give-up && break; done; ls /data/host; echo end; exec sleep 100"


def said_until_end(container: Container) -> list[bytes]:
    return list(itertools.takewhile(lambda line: line != b"end\n", (line.data for line in container.logs(follow=True))))


@requires("root")
@pytest.mark.parametrize(("propagation", "seen"), [("rslave", [b"canary\n"]), ("rprivate", [])])
def test_a_mount_of_the_host_reaches_a_slave_alone(
    engine: Engine, shared_directory: Path, propagation: str, seen: list[bytes]
) -> None:
    (shared_directory / "host").mkdir()
    options = RunOptions(volume=(f"{shared_directory}:/data:{propagation}",))
    container = engine.start("busybox", ["sh", "-c", WAIT_FOR_HOST], options=options)
    try:
        subprocess.run(["mount", "-t", "tmpfs", "canary", shared_directory / "host"], check=True)
        (shared_directory / "host/canary").touch()
        if not seen:
            (shared_directory / "give-up").touch()
        assert said_until_end(container) == seen
    finally:
        container.remove(force=True)


@requires("root")
@pytest.mark.parametrize(("propagation", "spreads"), [("rshared", True), ("rslave", False)])
def test_a_mount_inside_reaches_the_host_from_a_shared_one_alone(
    engine: Engine, shared_directory: Path, propagation: str, spreads: bool
) -> None:
    volume = (f"{shared_directory}:/data:{propagation}",)
    options = RunOptions(userns="host", volume=volume, cap_add=("SYS_ADMIN",), security_opt=UNCONFINED)
    container = engine.start("busybox", ["sh", "-c", MOUNT_INSIDE], options=options)
    try:
        assert said_until_end(container) == [b"made\n"]
        assert os.path.ismount(shared_directory / "below") == spreads
    finally:
        container.remove(force=True)


@requires("root")
def test_mounts_that_cannot_spread_are_refused(engine: Engine, shared_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="would be mounted on the host"):
        engine.run("busybox", ["true"], volumes=[f"{shared_directory}:/data:rshared"])
    alone = tmp_path / "alone"
    alone.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "alone", alone], check=True)
    try:
        subprocess.run(["mount", "--make-private", alone], check=True)
        with pytest.raises(InvalidOption, match="not a shared or slave mount"):
            engine.run("busybox", ["true"], volumes=[f"{alone}:/data:rslave"])
    finally:
        subprocess.run(["umount", alone], check=True)


# Descriptors, environment, mounts ------------------------------------------------------------------------------------

LIST_FDS = """
import json, os
links = {fd: f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
print(json.dumps({fd: os.readlink(path) for fd, path in links.items() if os.path.lexists(path)}))
"""


@pytest.fixture
def inheritable(canary: Path) -> Iterator[int]:
    fd = os.open(canary, os.O_RDWR)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


def test_program_has_three_descriptors(engine: Engine, inheritable: int, tmp_path: Path) -> None:
    with Engine(engine.root) as fresh:  # its spawner starts while the canary's descriptor can be inherited
        assert set(json.loads(python(fresh, LIST_FDS))) == {"0", "1", "2"}


def test_exec_has_three_descriptors(engine: Engine, inheritable: int) -> None:
    container = engine.start(IMAGE, ["python3", "-c", "import signal; signal.pause()"])
    assert set(json.loads(container.exec(["python3", "-c", LIST_FDS]).stdout)) == {"0", "1", "2"}
    container.remove(force=True)


def test_inheritable_descriptor_would_be_seen(inheritable: int, canary: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIST_FDS], close_fds=False, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[str(inheritable)] == str(canary)


def test_environment_of_the_host_stays_outside(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_SECRET", "canary")
    with Engine(engine.root) as fresh:
        code = "import os; print(dict(os.environ)); print(open('/proc/self/environ').read())"
        assert "canary" not in python(fresh, code)
        assert "canary" in python(fresh, code, options=RunOptions(rm=True, env=("HOST_SECRET",)))
        assert shell(fresh, "cat /proc/1/environ 2>/dev/null") == ""


def test_mount_table_tells_no_path_of_the_host(engine: Engine, tmp_path: Path) -> None:
    mounts = shell(engine, "cat /proc/self/mountinfo /proc/1/mountinfo")
    assert " / " in mounts
    assert str(engine.root.parent) not in mounts
    assert "/containers/" not in "".join(line.split()[3] for line in mounts.splitlines())
    shown = shell(engine, "cat /proc/self/mountinfo", RunOptions(rm=True, volume=(f"{tmp_path}:/data",)))
    assert tmp_path.name in shown  # the twin: a bind mount shows its source, as Linux has it


def test_init_tells_nothing_of_the_host(engine: Engine) -> None:
    script = "for f in exe cwd root; do readlink /proc/1/$f; done; ls /proc/1/fd; cat /proc/1/maps; cat /proc/1/cmdline | tr '\\0' ' '"
    assert shell(engine, script).strip() == "sandbox-init"
    assert shell(engine, "readlink /proc/$$/exe") == "/bin/busybox"


# Keys -------------------------------------------------------------------------------------------------------------------

SEARCH = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
found = libc.syscall(250, 10, -3, b"user", b"sandbox-canary", 0)
print("found" if found > 0 else os.strerror(ctypes.get_errno()))
"""


@requires("root")
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of add_key and keyctl are x86-64's")
def test_session_keyring_is_its_own(tmp_path: Path, engine: Engine) -> None:
    """A key in the session keyring of the process that starts the engine, as a login's would be."""
    code = f"""
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.syscall(250, 1, None) > 0  # a session keyring of this process only
key = libc.syscall(248, b"user", b"sandbox-canary", b"secret", 6, -3)
assert key > 0 and libc.syscall(250, 5, key, 0x3f3f3f3f) == 0
exec({SEARCH!r})
from sandbox.engine import Engine
from sandbox.options import RunOptions
with Engine(sys.argv[1]) as engine:
    options = RunOptions(rm=True, security_opt=(("seccomp", "unconfined"),))
    print(engine.run({IMAGE!r}, ["python3", "-c", {SEARCH!r}], options=options).stdout.decode())
    options = RunOptions(rm=True, userns="host", security_opt=(("seccomp", "unconfined"),))
    print(engine.run({IMAGE!r}, ["python3", "-c", {SEARCH!r}], options=options).stdout.decode())
"""
    done = subprocess.run([sys.executable, "-c", code, str(engine.root)], capture_output=True, text=True, check=False)
    host, *inside = done.stdout.split("\n")
    assert host == "found", done.stderr
    assert [line for line in inside if line] == ["Required key not available"] * 2


# The host's interpreter (CVE-2019-5736) ------------------------------------------------------------------------------


@pytest.mark.parametrize("userns", ["private", pytest.param("host", marks=requires("root"))])
def test_interpreter_of_the_host_cannot_be_changed_through_proc(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, userns: str
) -> None:
    """The script makes Linux run our own interpreter inside, by `#!/proc/self/exe`, and goes for its file."""
    victim = tmp_path / "python-victim"
    shutil.copy(os.path.realpath(sys.executable), victim)
    before = (victim.stat().st_mode, victim.stat().st_mtime_ns, victim.read_bytes())
    (tmp_path / "attack").write_text(OVERWRITE)
    (tmp_path / "attack").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(victim))
    with Engine(engine.root) as fresh:
        home = python(fresh, "import sys; print(sys.base_prefix)")  # so that it finds its library inside
        options = RunOptions(rm=True, userns=userns, env=(f"PYTHONHOME={home}",), volume=(f"{tmp_path / 'attack'}:/attack:ro",))
        done = fresh.run(IMAGE, ["/attack"], options=options)
    said = done.stdout.splitlines()
    assert len(said) == 3, done
    if os.geteuid() == 0:
        assert b"done" not in said
    else:  # a sealed copy in memory, which is the user's: others can run it, but not write to it
        assert done.stdout.endswith(b"Text file busy\n")
    assert (victim.stat().st_mode, victim.stat().st_mtime_ns, victim.read_bytes()) == before


def test_the_attack_on_an_interpreter_would_succeed_elsewhere(tmp_path: Path) -> None:
    victim = tmp_path / "python-victim"
    shutil.copy(os.path.realpath(sys.executable), victim)
    subprocess.run([victim, "-c", OVERWRITE.partition("\n")[2]], check=True, capture_output=True)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o4777


# Ways out of the root --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8, 9, 10])
def test_working_directory_cannot_be_a_leaked_descriptor(engine: Engine, canary: Path, number: int) -> None:
    """CVE-2024-21626."""
    done = engine.run(
        "busybox", ["sh", "-c", f"cat ../../../../..{canary}; ls"], options=RunOptions(rm=True, workdir=f"/proc/self/fd/{number}")
    )
    assert b"alive" not in done.stdout
    assert done.exit_code != 0


def test_working_directory_of_an_exec_cannot_be_a_leaked_descriptor(engine: Engine, canary: Path) -> None:
    container = engine.start("busybox", ["sleep", "100"])
    for number in range(3, 12):
        done = container.exec(["sh", "-c", f"cat ../../../../..{canary}"], workdir=f"/proc/self/fd/{number}")
        assert b"alive" not in done.stdout
        assert done.exit_code != 0
    container.remove(force=True)


@requires("root")
def test_init_holds_no_directory_open(engine: Engine) -> None:
    """Seen from the host: what could be a way out if init could be made to use it."""
    container = engine.start("busybox", ["sleep", "100"])
    held = {fd: os.readlink(f"/proc/{container.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{container.pid}/fd")}
    container.remove(force=True)
    assert {fd: target for fd, target in held.items() if not target.startswith(("socket:", "/dev/null", "anon_inode:"))} == {}
    assert held


@requires("root")
def test_a_descriptor_of_a_directory_is_a_way_out_of_a_plain_chroot(canary: Path) -> None:
    """The twin: this is what would happen."""
    code = f"import os; fd = os.open('/', os.O_RDONLY); os.chroot('/var'); os.fchdir(fd); print(open('.{canary}').read())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "alive\n"


def tar_with(busybox_tar: Path, *links: tuple[str, str]) -> io.BytesIO:
    """busybox with symbolic links added."""
    out = io.BytesIO(busybox_tar.read_bytes())
    with tarfile.open(fileobj=out, mode="a") as tar:
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    out.seek(0)
    return out


def test_mount_targets_resolve_inside_the_root(engine: Engine, tmp_path: Path, busybox_tar: Path, canary: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    up = "../" * 30
    links = (
        ("./data", f"{up}{str(outside)[1:]}"),
        ("./abs", str(outside)),
        ("./magic", "/proc/1/root"),
        ("./var/log", f"/proc/self/cwd/{up}{str(outside)[1:]}"),
    )
    engine.import_image(tar_with(busybox_tar, *links), "links")
    for target in ("/data/x", "/abs/y", "/magic/z", "/var/log/w", "/data"):
        engine.run("links", ["true"], options=RunOptions(rm=True, volume=(f"{canary}:{target}:ro",)))
        assert list(outside.iterdir()) == []
    done = engine.run("links", ["cat", f"{outside}/x"], options=RunOptions(rm=True, volume=(f"{canary}:/data/x:ro",)))
    assert done.stdout == b"alive"  # the twin: it was mounted, inside


@requires("root")
def test_no_code_of_the_image_is_loaded_by_our_processes(engine: Engine, busybox_tar: Path) -> None:
    """CVE-2019-14271: an image with libraries, preloads and modules of its own at the host's paths, and odd user tables."""
    modules = [path for path in sys.path if path.endswith(f"python3.{sys.version_info.minor}")]
    trap = b"import os; os.close(os.open('/trapped', os.O_CREAT | os.O_WRONLY))\n"
    out = io.BytesIO(busybox_tar.read_bytes())
    with tarfile.open(fileobj=out, mode="a") as tar:
        for name in (
            f".{modules[0]}/{module}.py"
            for module in ("encodings/idna", "json/decoder", "linecache", "traceback", "shutil", "pwd", "copyreg")
        ):
            info = tarfile.TarInfo(name)
            info.size = len(trap)
            tar.addfile(info, io.BytesIO(trap))
        for name, text in (("./etc/ld.so.preload", b"/trap.so\n"), ("./etc/nsswitch.conf", b"passwd: trap\n")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
        fifo = tarfile.TarInfo("./etc/group")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
    out.seek(0)
    engine.import_image(out, "trap")
    container = engine.start("trap", ["sleep", "100"])
    container.copy_in("/tmp", b"\0" * 10240)
    container.exec(["true"], user="0")
    container.exec(["nope"])
    assert container.exec(["ls", "/trapped"]).exit_code != 0
    assert container.exec(["ls", f"{modules[0]}/linecache.py"]).exit_code == 0
    mapped = {line.split(maxsplit=5)[-1] for line in Path(f"/proc/{container.pid}/maps").read_text().splitlines() if ".so" in line}
    assert mapped
    assert {path for path in mapped if not os.path.exists(path)} == set()
    container.remove(force=True)


# Linux' own files ------------------------------------------------------------------------------------------------------

WRITES = (
    "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/kernel/modprobe",
    "/proc/sys/vm/drop_caches", "/proc/sys/kernel/domainname", "/proc/sys/fs/file-max", "/proc/irq/default_smp_affinity",
    "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/power/state", "/sys/module/kernel/parameters/panic",
    "/dev/mem", "/dev/kmsg", "/dev/kmem", "/dev/vda", "/dev/sda", "/proc/kcore", "/proc/1/mem", "/proc/1/oom_score_adj",
    "/proc/1/uid_map", "/proc/self/uid_map",
)  # fmt: skip


@pytest.mark.parametrize("capability", [(), ("SYS_ADMIN",), ("ALL",)])
def test_linux_settings_cannot_be_written(engine: Engine, capability: tuple[str, ...]) -> None:
    code = "import os, sys\nfor path in sys.argv[1:]:\n try: os.write(os.open(path, os.O_WRONLY), b'1'); print(path)\n except OSError: pass"
    before = [Path(path).read_text() for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname")]
    done = engine.run(IMAGE, ["python3", "-c", code, *WRITES], options=RunOptions(rm=True, cap_add=capability))
    assert done.stdout.decode().split() == []
    assert [Path(path).read_text() for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname")] == before


@requires("root")
def test_the_host_could_open_some_of_them() -> None:
    opened = []
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/dev/kmsg"):
        if os.path.exists(path):
            os.close(os.open(path, os.O_WRONLY))
            opened.append(path)
    assert opened


def test_masked_paths_show_nothing(engine: Engine) -> None:
    done = shell(
        engine,
        "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | wc -c; "
        "ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v :",
    )
    assert done.split() == ["0"]
    assert Path("/proc/interrupts").read_bytes()


def test_devices_cannot_be_made(engine: Engine) -> None:
    assert (
        shell(
            engine,
            "for d in 'b 254 0' 'c 1 1' 'c 10 232'; do mknod /tmp/d $d 2>/dev/null && (exec 5<>/tmp/d) 2>/dev/null && echo opened; "
            "rm -f /tmp/d; done",
        )
        == ""
    )
    assert shell(engine, "mkfifo /tmp/f && echo made") == "made"


CGROUPS = """
mkdir /tmp/c
for o in memory rdma pids devices; do
  mount -t cgroup -o $o cgroup /tmp/c 2>/dev/null || continue
  echo mounted
  (echo /tmp/evil > /tmp/c/release_agent) 2>/dev/null && echo agent
  (echo 1 > /tmp/c/notify_on_release) 2>/dev/null && echo notify
  mkdir /tmp/c/evil 2>/dev/null && echo group
  (echo 0 > /tmp/c/cgroup.procs) 2>/dev/null && echo moved
  umount /tmp/c
done
find /sys /proc/fs -name release_agent 2>/dev/null
true
"""


@pytest.mark.parametrize("capability", [(), ("SYS_ADMIN",), ("ALL",)])
def test_cgroups_cannot_be_changed_from_inside(engine: Engine, capability: tuple[str, ...]) -> None:
    """CVE-2022-0492. With CAP_SYS_ADMIN a cgroup namespace lets them be mounted; everything in them belongs to the host's root."""
    agents = {path: path.read_text() for path in Path("/sys/fs/cgroup").glob("*/release_agent")}
    options = RunOptions(rm=True, cap_add=capability, security_opt=UNCONFINED if capability else ())
    assert set(shell(engine, CGROUPS, options).split()) <= {"mounted"}
    assert {path: path.read_text() for path in agents} == agents


@requires("root")
def test_cgroups_could_be_changed_by_the_hosts_root(tmp_path: Path) -> None:
    group = next((path.parent for path in Path("/sys/fs/cgroup").glob("*/release_agent")), None)
    if group is None:
        pytest.skip("no cgroup v1 here")
    os.close(os.open(group / "release_agent", os.O_WRONLY))


# Processes and sockets ---------------------------------------------------------------------------------------------------

PTRACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, call):
    try: print(name, call())
    except OSError as err: pass
attempt("attach", lambda: None if libc.ptrace(16, 1, None, None) == 0 else (_ for _ in ()).throw(OSError()))
for ns in os.listdir("/proc/1/ns"):
    attempt(ns, lambda: os.open(f"/proc/1/ns/{ns}", os.O_RDONLY))
attempt("mem", lambda: os.open("/proc/1/mem", os.O_RDONLY))
attempt("signal", lambda: os.kill(int(sys.argv[1]), 0))
attempt("pidfd", lambda: os.pidfd_open(int(sys.argv[1])))
"""


@requires("root")
@pytest.mark.parametrize("options", [RunOptions(rm=True), RunOptions(rm=True, cap_add=("SYS_PTRACE",), security_opt=UNCONFINED)])
def test_init_and_the_host_cannot_be_traced_entered_or_signalled(engine: Engine, options: RunOptions) -> None:
    victim = subprocess.Popen(["sleep", "1000"])
    try:
        done = engine.run(IMAGE, ["python3", "-c", PTRACE, str(victim.pid)], options=options)
        assert done.stdout == b""
        assert victim.poll() is None
        on_host = subprocess.run([sys.executable, "-c", PTRACE, str(victim.pid)], capture_output=True, text=True, check=True)
        assert "signal" in on_host.stdout
    finally:
        victim.kill()
        victim.wait()


def test_abstract_sockets_of_the_host_are_out_of_reach(engine: Engine) -> None:
    name = f"\0sandbox-canary-{os.getpid()}"
    connect = f"try: s.connect({name!r}); print('reached')"
    code = f"import socket; s = socket.socket(socket.AF_UNIX)\n{connect}\nexcept OSError as err: print(err.strerror)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(4)
        assert python(engine, code) == "Connection refused"
        assert python(engine, code, options=RunOptions(rm=True, network="host")) == "reached"


TIOCSTI = """
import fcntl, termios
for attack in (lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 1), lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x")):
    try: attack(); print("injected")
    except OSError as err: print(err.strerror)
"""


def test_keys_cannot_be_typed_into_the_callers_terminal(engine: Engine) -> None:
    """TIOCSTI: the terminal is stdin, and somebody else's controlling terminal."""
    master, slave = os.openpty()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, termios, sys; fcntl.ioctl(0, termios.TIOCSCTTY, 0); print('held', flush=True); sys.stdin.readline()",
        ],
        stdin=slave,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with os.fdopen(os.dup(slave), "rb", buffering=0) as terminal:
            done = engine.run(IMAGE, ["python3", "-c", TIOCSTI], options=RunOptions(rm=True, interactive=True), stdin=terminal)
        assert done.stdout.split(b"\n")[:2] == [b"Operation not permitted"] * 2
    finally:
        holder.kill()
        holder.communicate()
        os.close(master)
        os.close(slave)


def test_the_terminal_would_take_typed_keys_from_its_own_session() -> None:
    """The twin, where Linux allows it at all (dev.tty.legacy_tiocsti)."""
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if setting.exists() and setting.read_text().strip() != "1":
        pytest.skip("this Linux refuses TIOCSTI everywhere")
    master, slave = os.openpty()
    done = subprocess.run([sys.executable, "-c", TIOCSTI], stdin=slave, capture_output=True, start_new_session=True, check=True)
    os.close(master)
    os.close(slave)
    assert done.stdout == b"injected\ninjected\n"
