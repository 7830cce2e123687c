"""Each limit bites in a real container and is named; meanwhile the host goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from sandbox.errors import InvalidOption, SetupFailed
from sandbox.options import RunOptions
from sandbox.runtime.spec import Completed
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]
MIB = 1 << 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("limits") / "engine") as made:
        made.import_image(busybox_tar, "busybox")
        yield made
        for container in made.containers(all=True):
            container.remove(force=True)


def run(engine: Engine, script: str, **options: object) -> Completed:
    return engine.run("busybox", ["sh", "-c", script], options=RunOptions(rm=True, **options))  # type: ignore[arg-type]  # by name


def host_answers(engine: Engine) -> bool:
    """Whether a process and another container can be started now."""
    return subprocess.run(["true"], check=True).returncode == 0 and run(engine, "echo up").stdout == b"up\n"


@requires("memory")
def test_memory_hog_is_killed_and_named(engine: Engine) -> None:
    done = run(engine, "tail -c 200m /dev/zero", memory=32 * MIB)
    assert (done.why, done.reason, done.exit_code) == ("oom", "out of memory: killed at the 32 MiB limit", 137)
    assert done.usage.peak_memory is not None
    assert done.usage.peak_memory <= 33 * MIB
    assert host_answers(engine)


@requires("memory", "swap")
def test_swap_counts_against_the_swap_limit(engine: Engine) -> None:
    assert run(engine, "dd if=/dev/zero of=/dev/null bs=60M count=1", memory=32 * MIB, memory_swap=32 * MIB).why == "oom"
    assert run(engine, "dd if=/dev/zero of=/dev/null bs=8M count=1", memory=32 * MIB, memory_swap=32 * MIB).why == "exited"


@requires("memory")
def test_files_in_memory_count_as_memory(engine: Engine) -> None:
    done = run(engine, "dd if=/dev/zero of=/dev/shm/x bs=1M count=200", memory=32 * MIB, memory_swap=32 * MIB, shm_size=256 * MIB)
    assert done.why == "oom"


@requires("cpus")
def test_cpu_limit_throttles_and_tells(engine: Engine) -> None:
    burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    done = run(engine, burn, cpus=0.1)
    assert done.usage.throttled is not None
    assert done.usage.throttled > 0
    assert run(engine, "true", cpus=2.0).usage.throttled == 0


@requires("cpuset")
def test_cpu_set_is_all_it_may_run_on(engine: Engine) -> None:
    last = max(os.sched_getaffinity(0))
    done = run(engine, "grep -E 'Cpus_allowed_list|Mems_allowed_list' /proc/self/status", cpuset_cpus=str(last), cpuset_mems="0")
    assert done.stdout.split() == [b"Cpus_allowed_list:", str(last).encode(), b"Mems_allowed_list:", b"0"]


@requires("pressure", "cpuset")
def test_waiting_for_a_processor_is_told(engine: Engine) -> None:
    """Two that want one processor: each waits about as long as the other runs."""
    spin = "while [ $i -lt 100000 ]; do i=$((i+1)); done"
    done = run(engine, f"i=0; {spin} & {spin}; wait", cpuset_cpus=str(max(os.sched_getaffinity(0))))
    assert done.usage.cpu_stall is not None
    assert done.usage.cpu_stall > 0
    assert done.usage.memory_stall is not None


@requires("pids")
def test_fork_bomb_is_named_and_the_host_goes_on(engine: Engine) -> None:
    bomb = "b() { b | b & }; b; i=0; while [ $i -lt 200 ]; do (:) || exit 1; i=$((i+1)); done; exit 1"
    with engine.launch("busybox", ["sh", "-c", bomb], options=RunOptions(rm=True, pids_limit=40, timeout=20.0))[0] as running:
        assert host_answers(engine)
        done = running.wait()
    assert (done.why, done.reason) == ("pids", "process limit reached (--pids-limit 40)")
    assert done.usage.peak_pids in (40, None)


def test_shared_memory_is_as_large_as_asked(engine: Engine) -> None:
    done = run(engine, "dd if=/dev/zero of=/dev/shm/x bs=64k 2>&1; wc -c < /dev/shm/x", shm_size=MIB)
    assert b"No space left on device" in done.stdout
    assert done.stdout.split()[-1] == str(MIB).encode()


def test_open_files_are_limited(engine: Engine) -> None:
    script = 'i=3; while [ $i -lt 40 ]; do eval "exec $i</dev/null" || exit 7; i=$((i+1)); done'
    assert b"oo many open files" in run(engine, script, ulimit=(("nofile", 16, 16),)).stderr
    assert run(engine, script, ulimit=(("nofile", 64, 64),)).exit_code == 0


def test_ulimit_above_the_hosts_is_refused_where_it_cannot_be_given(engine: Engine) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    can_raise = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> 24 & 1
    if can_raise:
        assert run(engine, "ulimit -Hn", ulimit=(("nofile", hard + 1, hard + 1),)).stdout.split() == [str(hard + 1).encode()]
    else:
        with pytest.raises(SetupFailed, match=f"ulimit nofile: {hard + 1} is above this host's hard limit {hard}"):
            run(engine, "true", ulimit=(("nofile", hard + 1, hard + 1),))


def test_time_limit_is_named(engine: Engine) -> None:
    done = run(engine, "trap '' TERM; while :; do sleep 1; done", timeout=0.2)
    assert (done.why, done.exit_code) == ("timeout", 124)


@pytest.mark.parametrize("tty", [False, True])
def test_endless_printer_is_stopped_and_named(engine: Engine, tty: bool) -> None:
    done = run(engine, "yes", output_limit=MIB, tty=tty)
    assert (done.why, done.reason, done.exit_code) == ("output", "stopped: printed more than --output-limit 1 MiB", 137)
    assert len(done.stdout) < 4 * MIB
    assert host_answers(engine)


def test_printer_below_its_limit_ends_by_itself(engine: Engine) -> None:
    done = run(engine, "head -c 100000 /dev/zero; head -c 1000 /dev/zero >&2", output_limit=MIB)
    assert (done.why, len(done.stdout), len(done.stderr)) == ("exited", 100_000, 1000)


PLACES = pytest.mark.parametrize("place", ["cd /", "mkdir -m 0 /d; chown 5:6 /d; cd /d"])
"""Where anybody can look, and where only the container's root can."""


@PLACES
def test_disk_filler_is_stopped_and_named(engine: Engine, place: str) -> None:
    done = run(engine, f"{place}; dd if=/dev/zero of=f bs=1M count=2000", storage_opt=16 * MIB)
    assert (done.why, done.reason) == ("disk", "disk full: wrote more than --storage-opt size=16 MiB")
    assert host_answers(engine)


@requires("pids")
def test_disk_filler_that_hides_its_file_is_stopped_too(engine: Engine) -> None:
    done = run(engine, "exec 5>/f; rm /f; dd if=/dev/zero bs=1M count=2000 >&5; sleep 60", storage_opt=16 * MIB, timeout=30.0)
    assert done.why == "disk"


def test_disk_filler_of_many_small_files_is_stopped_too(engine: Engine) -> None:
    script = "mkdir /d; i=0; while :; do echo x > /d/$i; i=$((i+1)); done"
    assert run(engine, script, storage_opt=2 * MIB, timeout=60.0).why == "disk"


@PLACES
def test_program_that_writes_less_is_left_alone(engine: Engine, place: str) -> None:
    done = run(engine, f"{place}; dd if=/dev/zero of=f bs=1M count=8; sleep 0.3; ls -l f >&2; exit 3", storage_opt=16 * MIB)
    assert (done.why, done.exit_code) == ("exited", 3)
    assert done.usage.io_written is not None
    assert done.usage.io_written >= 8 * MIB


def root_disk(path: Path) -> str | None:
    """The whole disk below a path, as /dev/NAME."""
    number = os.stat(path).st_dev
    found = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not found.exists():
        return None
    disk = found.resolve()
    disk = disk.parent if (disk / "partition").exists() else disk
    return f"/dev/{disk.name}" if Path(f"/dev/{disk.name}").exists() else None


@requires("io")
def test_block_writes_take_as_long_as_their_limit_says(engine: Engine) -> None:
    """Only the least time is checked: 2 MiB at 2 MiB/s; Linux lets a first slice pass."""
    disk = root_disk(engine.root)
    if disk is None:
        pytest.skip("the state directory is on no disk of this host")
    done = run(engine, "dd if=/dev/zero of=/f bs=128k count=16 oflag=direct", device_write_bps=((disk, 2 * MIB),))
    assert done.exit_code == 0, done.stderr
    assert done.usage.wall > 0.5
    assert done.usage.io_written is not None
    assert done.usage.io_written >= 2 * MIB


def test_rate_of_what_is_no_disk_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidOption, match="/dev/null: not a block device"):
        run(engine, "true", device_write_bps=(("/dev/null", MIB),))


def test_a_thousand_sockets_leave_the_host_responsive(engine: Engine, python_tar: Path) -> None:
    engine.load(python_tar)
    code = "import socket; kept = [socket.socketpair() for _ in range(600)]; print(len(kept), flush=True); import sys; sys.stdin.read(1)"
    options = RunOptions(rm=True, interactive=True, ulimit=(("nofile", 2048, 2048),))
    seen: list[bytes] = []
    read_end, write_end = os.pipe()
    from sandbox.engine import Streams

    with engine.launch("localhost/python", ["python3", "-c", code], options=options, streams=Streams(stdin=read_end))[0] as running:
        os.close(read_end)
        assert running.serve(lambda stream, data: seen.append(data), lambda: bool(seen), timeout=30)
        assert seen == [b"600\n"]
        assert host_answers(engine)
        os.close(write_end)
        assert running.wait(lambda stream, data: None).exit_code == 0


def test_oom_score_may_be_raised(engine: Engine) -> None:
    assert run(engine, "cat /proc/self/oom_score_adj", oom_score_adj=700).stdout == b"700\n"


def test_oom_score_below_ours_is_refused_without_the_right_to_it(engine: Engine) -> None:
    if int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16) >> 24 & 1:
        assert run(engine, "cat /proc/self/oom_score_adj", oom_score_adj=-500).stdout == b"-500\n"
    else:
        with pytest.raises(SetupFailed, match="oom_score_adj"):
            run(engine, "true", oom_score_adj=-500)
