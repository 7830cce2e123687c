"""The Python API as its user meets it: real containers of a busybox image."""

from __future__ import annotations

import io
import os
import select
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from sandbox.errors import ContainerError, ContainerNotFound, ImageNotFound, SetupFailed, WrongState
from sandbox.options import RunOptions
from sandbox.runtime import cgroups
from sandbox.runtime.container import engine_mark
from tests.support.host import requires

IMAGE = "localhost/busybox"
pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """busybox as a tar."""
    directory = tmp_path_factory.mktemp("busybox")
    for name in ("bin", "etc", "tmp", "root", "var"):
        (directory / "tree" / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", directory / "tree/bin/busybox")
    for name in subprocess.run(["busybox", "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (directory / "tree/bin" / name).symlink_to("busybox")
    (directory / "tree/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n")
    (directory / "tree/etc/group").write_text("root:x:0:\nbob:x:1000:\nextra:x:50:bob\n")
    archive = directory / "rootfs.tar"
    subprocess.run(["tar", "-C", str(directory / "tree"), "-cf", str(archive), "."], check=True)
    return archive


@pytest.fixture
def engine(tmp_path: Path, rootfs: Path) -> Iterator[Engine]:
    """An engine of its own; afterwards nothing of it is left on the host."""
    with Engine(tmp_path / "state") as opened:
        opened.import_image(rootfs, IMAGE, changes=['CMD ["sh"]', "ENV PATH=/bin"])
        yield opened
        for container in opened.containers(all=True):
            container.remove(force=True)
        assert opened.containers(all=True) == []
        assert not list(opened.root.glob("containers/*"))
    assert groups_of(opened) == []


def groups_of(engine: Engine) -> list[str]:
    """The cgroups of this engine's containers."""
    return [name for name in cgroups.discover().existing() if name.startswith(engine_mark(engine.root) + ".")]


def test_output_and_exit_code_are_the_programs(engine: Engine) -> None:
    done = engine.run(IMAGE, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.exit_code, done.stdout, done.stderr, done.why) == (3, b"out\n", b"err\n", "exited")


def test_a_running_container_has_groups_the_oracle_sees(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sleep", "100"])
    assert len(groups_of(engine)) == 1
    container.remove(force=True)


@pytest.mark.parametrize(("argv", "code"), [(["nope"], 127), (["/etc"], 126), (["sh", "-c", "kill -KILL $$"], 137)])
def test_exit_codes_are_dockers(engine: Engine, argv: list[str], code: int) -> None:
    assert engine.run(IMAGE, argv).exit_code == code


def test_memory_limit_bites_and_is_named(engine: Engine) -> None:
    done = engine.run(IMAGE, ["tail", "/dev/zero"], memory="64m")
    assert (done.why, done.reason) == ("oom", "out of memory: killed at the 64 MiB limit")


def test_timeout_bites_and_is_named(engine: Engine) -> None:
    done = engine.run(IMAGE, ["sleep", "1000"], timeout="0.2s")
    assert (done.why, done.exit_code, done.reason) == ("timeout", 124, "stopped: ran longer than --timeout 0.2s")


def test_process_limit_bites_and_is_named(engine: Engine) -> None:
    done = engine.run(IMAGE, ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; exit 1"], pids_limit=5, timeout=30)
    assert (done.why, done.reason) == ("pids", "process limit reached (--pids-limit 5)")


def test_limit_that_cannot_be_enforced_is_an_error(engine: Engine) -> None:
    with pytest.raises(SetupFailed, match="cpuset"):
        engine.run(IMAGE, ["true"], options=RunOptions(rm=True, cpuset_cpus="4095"))


def test_container_root_is_not_the_hosts(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sleep", "100"])
    assert container.pid is not None
    assert os.stat(f"/proc/{container.pid}").st_uid != 0
    assert container.exec(["id", "-u"]).stdout == b"0\n"


def test_host_file_cannot_be_seen_nor_written(engine: Engine, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    done = engine.run(IMAGE, ["sh", "-c", f"cat {canary}; echo dead > {canary}; cat /proc/1/root{canary}; ls /proc/1/cwd/"])
    assert canary.read_text() == "alive"
    assert b"alive" not in done.stdout


def test_bound_canary_can_be_written(engine: Engine, tmp_path: Path) -> None:
    """The twin of the test above: the canary would tell."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    engine.run(IMAGE, ["sh", "-c", "echo dead > /host/canary"], volumes=[f"{tmp_path}:/host"])
    assert canary.read_text() == "dead\n"


def test_user_is_looked_up_in_the_image(engine: Engine) -> None:
    assert engine.run(IMAGE, ["id"], user="bob").stdout == b"uid=1000(bob) gid=1000(bob) groups=50(extra),1000(bob)\n"
    assert engine.run(IMAGE, ["id"], user="nobody").exit_code == 126


def test_network_none_has_loopback_only(engine: Engine) -> None:
    assert engine.run(IMAGE, ["sh", "-c", "ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 >/dev/null"], network="none").stdout == b"lo\n"


def test_no_descriptor_and_no_environment_leak_in(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_SECRET", "s3cret")
    done = engine.run(IMAGE, ["sh", "-c", "env; ls /proc/self/fd; cat /proc/1/cmdline; cat /proc/1/environ"])
    assert b"s3cret" not in done.stdout
    assert str(Path(__file__).parents[2]).encode() not in done.stdout
    # 3 is ls's own open directory
    assert done.stdout.split(b"sandbox-init")[0].split()[-4:] == [b"0", b"1", b"2", b"3"]


def test_stdin_reaches_the_program(engine: Engine) -> None:
    assert engine.run(IMAGE, ["wc", "-c"], stdin=b"x" * 300_000).stdout.strip() == b"300000"


def test_read_only_root_refuses_and_tmpfs_takes(engine: Engine) -> None:
    options = RunOptions(rm=True, read_only=True, tmpfs=("/t",))
    done = engine.run(IMAGE, ["sh", "-c", "touch /x /etc/hosts; touch /t/x && echo ok"], options=options)
    assert done.stdout == b"ok\n"
    assert done.stderr.count(b"Read-only file system") == 2


def test_detached_container_outlives_its_engine(engine: Engine, tmp_path: Path) -> None:
    with Engine(engine.root) as other:
        name = other.start(IMAGE, ["sh", "-c", "echo hello; exec sleep 100"], options=RunOptions(name="lives")).name
    container = engine.container(name)
    assert container.status == "running"
    container.stop(timeout=5)
    assert container.status == "exited"
    assert [line.data for line in container.logs()] == [b"hello\n"]


def test_exec_env_workdir_and_exit_code(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sleep", "100"])
    done = container.exec(["sh", "-c", "echo $A; pwd; exit 5"], env={"A": "b"}, workdir="/tmp")
    assert (done.exit_code, done.stdout) == (5, b"b\n/tmp\n")


def test_names_are_unique_and_reusable(engine: Engine) -> None:
    engine.create(IMAGE, options=RunOptions(name="one"))
    with pytest.raises(ContainerError, match="already used"):
        engine.create(IMAGE, options=RunOptions(name="one"))
    engine.container("one").remove()
    engine.create(IMAGE, options=RunOptions(name="one"))


def test_running_container_is_not_removed_without_force(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sleep", "100"])
    with pytest.raises(WrongState):
        container.remove()
    container.remove(force=True)
    with pytest.raises(ContainerNotFound):
        engine.container(container.id)


def test_killed_supervisor_takes_its_container_along(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sleep", "100"], options=RunOptions(name="doomed"))
    pid = container.pid
    assert pid is not None
    init = os.pidfd_open(pid)
    supervisor = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    poll = select.poll()  # init is not our child: its pidfd tells
    poll.register(init, select.POLLIN)
    assert poll.poll(10_000)
    os.close(init)
    done = container.completed
    assert done is not None
    assert (container.status, done.why) == ("exited", "lost")
    assert engine.prune().containers == (container.id,)
    assert groups_of(engine) == []


def test_restarted_container_keeps_its_files(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sh", "-c", "cat /kept; echo here > /kept"], options=RunOptions(name="again"))
    container.wait(timeout=10)
    container.start()
    container.wait(timeout=10)
    assert [line.data for line in container.logs() if line.stream == "stdout"] == [b"here\n"]


def test_diff_names_what_changed_and_no_mount_point(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sh", "-c", "touch /new; rm /bin/wc; echo x >> /etc/passwd; sleep 100"])
    container.exec(["sh", "-c", "until [ -s /etc/passwd ] && grep -q x$ /etc/passwd; do :; done"])
    changes = container.diff()
    assert {("A", "/new"), ("D", "/bin/wc"), ("C", "/etc/passwd")} <= set(changes)
    assert not [path for _, path in changes if path.startswith(("/proc", "/sys", "/dev"))]


@pytest.mark.parametrize("running", [True, False])
def test_copy_in_and_out(engine: Engine, running: bool) -> None:
    container = engine.start(IMAGE, ["sleep", "100"]) if running else engine.create(IMAGE)
    container.copy_in("/tmp", tar_of("a.txt", b"content"))
    with tarfile.open(fileobj=io.BytesIO(container.copy_out("/tmp/a.txt"))) as tar:
        member = tar.extractfile("a.txt")
        assert member is not None
        assert member.read() == b"content"


def test_copy_in_cannot_leave_the_container(engine: Engine, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    container = engine.start(IMAGE, ["sh", "-c", f"ln -s {'../' * 20}{tmp_path} /tmp/out; sleep 100"])
    container.exec(["sh", "-c", "until [ -L /tmp/out ]; do :; done"])
    with pytest.raises(ContainerError):
        container.copy_in("/tmp/out", tar_of("canary", b"dead"))
    with pytest.raises(ContainerError, match="outside of the directory"):
        container.copy_in("/tmp", tar_of(f"{'../' * 20}{str(tmp_path)[1:]}/canary", b"dead"))
    assert canary.read_text() == "alive"


def test_commit_makes_an_image_of_what_changed(engine: Engine) -> None:
    container = engine.start(IMAGE, ["sh", "-c", "echo new > /new; sleep 100"])
    container.exec(["sh", "-c", "until [ -s /new ]; do :; done"])
    image = container.commit("localhost/committed", changes=['CMD ["cat", "/new"]'])
    assert engine.run("localhost/committed").stdout == b"new\n"
    assert len(image.diff_ids) == 2


def test_unknown_image_says_what_is_close(engine: Engine) -> None:
    with pytest.raises(ImageNotFound) as caught:
        engine.run("localhost/busybix", ["true"])
    assert caught.value.hint == "did you mean localhost/busybox:latest?"


def tar_of(name: str, content: bytes) -> bytes:
    """A tar of one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return out.getvalue()
