"""`sandbox-oci` as an engine uses it: create, start, state, kill, delete, exec, hooks, terminals."""

from __future__ import annotations

import array
import json
import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.bundles import Bundle, Oci, created
from tests.support.host import requires

pytestmark = [requires("root", "userns"), pytest.mark.xdist_group("bundles")]


def ended(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 20)[0], f"{pid} goes on"
    finally:
        os.close(fd)


def test_run_gives_the_programs_output_and_status(oci: Oci, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "echo out; echo err >&2; exit 7")

    done = oci("run", "--bundle", bundle.path, "t-run", check=False)

    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert oci.ids() == []


def test_run_tells_the_signal_that_ended_it(oci: Oci, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "sh -c 'kill -9 $$'; exit $?")

    assert oci("run", "--bundle", bundle.path, "t-signal", check=False).returncode == 137


def test_the_program_is_process_one_of_its_namespace(oci: Oci, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l")

    assert oci("run", "--bundle", bundle.path, "t-one").stdout.split()[0] == "1"


def test_a_created_container_waits_for_start(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sh", "-c", "echo started > /said; exec sleep 1000")
    created(oci, bundle, "t-wait", tmp_path / "out")
    before = oci.state("t-wait")

    assert (before["status"], before["pid"] > 1, (bundle.rootfs / "said").exists()) == ("created", True, False)
    assert before["bundle"] == str(bundle.path)
    oci("start", "t-wait")
    assert oci.state("t-wait")["status"] == "running"
    again = oci("start", "t-wait", check=False)
    assert again.returncode == 1
    assert "running" in again.stderr
    oci("kill", "t-wait", "KILL")
    ended(before["pid"])
    assert oci.state("t-wait")["status"] == "stopped"
    assert oci.state("t-wait")["pid"] == 0
    assert (bundle.rootfs / "said").read_text() == "started\n"
    oci("delete", "t-wait")
    assert oci("state", "t-wait", check=False).returncode == 1


def test_only_a_stopped_container_is_deleted_without_force(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000")
    created(oci, bundle, "t-del", tmp_path / "out")
    oci("start", "t-del")
    pid = oci.state("t-del")["pid"]

    refused = oci("delete", "t-del", check=False)

    assert refused.returncode == 1
    assert "running" in refused.stderr
    oci("delete", "--force", "t-del")
    ended(pid)
    assert oci("delete", "t-del", check=False).returncode == 1
    oci("delete", "--force", "t-del")  # there is none: forgiven


def test_an_id_is_taken_once(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000")
    created(oci, bundle, "t-twice", tmp_path / "out")

    second = oci("create", "--bundle", bundle.path, "t-twice", check=False)

    assert (second.returncode, "exists already" in second.stderr) == (1, True)
    assert oci.state("t-twice")["status"] == "created"


@pytest.mark.parametrize("container_id", ["../up", "a/b", "..", ""])
def test_an_id_that_is_no_file_name_is_refused(oci: Oci, bundle: Bundle, container_id: str) -> None:
    bundle.write("true")

    assert oci("create", "--bundle", bundle.path, container_id, check=False).returncode == 1


@pytest.mark.parametrize(("program", "words"), [("nothing-here", "executable file not found in $PATH"), ("/etc", "Permission denied")])
def test_a_program_that_cannot_be_is_named_as_engines_expect(oci: Oci, bundle: Bundle, tmp_path: Path, program: str, words: str) -> None:
    bundle.write(program)
    log = tmp_path / "log"

    done = subprocess.run(
        [*oci.argv, "--log", str(log), "--log-format", "json", "create", "--bundle", str(bundle.path), "t-none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, words in done.stderr) == (1, True)
    assert words in json.loads(log.read_text())["msg"]
    assert oci.ids() == []


def test_the_pid_file_holds_the_first_process(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000")
    with (tmp_path / "out").open("w") as file:
        oci("create", "--bundle", bundle.path, "--pid-file", tmp_path / "pid", "t-pid", output=file)

    assert int((tmp_path / "pid").read_text()) == oci.state("t-pid")["pid"]


def test_descriptors_are_handed_on_only_when_asked(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sh", "-c", "ls /proc/self/fd; cat <&3 2>/dev/null")
    told, tell = os.pipe()
    os.write(tell, b"from outside")
    os.close(tell)
    with (tmp_path / "out").open("w+") as file:
        for asked in ("0", "1"):
            pid = os.fork()
            if pid == 0:
                os.dup2(told, 3)
                os.dup2(file.fileno(), 1)
                os.execv(oci.argv[0], [*oci.argv, "run", "--bundle", str(bundle.path), "--preserve-fds", asked, f"t-fd{asked}"])
            os.waitpid(pid, 0)
    os.close(told)

    without, _, after = (tmp_path / "out").read_text().partition("from outside")
    assert after == ""
    assert without.split() == ["0", "1", "2", "3", "0", "1", "2", "3", "4"]  # the last is ls's own


def test_exec_enters_every_namespace(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000", change=lambda c: c.update(hostname="inside"))
    created(oci, bundle, "t-exec", tmp_path / "out")
    oci("start", "t-exec")
    pid = oci.state("t-exec")["pid"]

    flags = ("--env", "A=b", "--cwd", "/tmp", "--user", "1000:1000")
    done = oci("exec", *flags, "t-exec", "sh", "-c", "hostname; pwd; id -u; echo $A; exit 5", check=False)

    assert (done.returncode, done.stdout.split()) == (5, ["inside", "/tmp", "1000", "b"])
    links = oci("exec", "t-exec", "sh", "-c", "for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done").stdout.split()
    assert links == [os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")]


def test_exec_takes_a_process_file_and_detaches(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    config = bundle.write("sleep", "1000")
    created(oci, bundle, "t-proc", tmp_path / "out")
    oci("start", "t-proc")
    process = config["process"] | {"args": ["sh", "-c", "echo done > /by-exec"], "env": ["PATH=/bin"]}
    (tmp_path / "process.json").write_text(json.dumps(process))

    oci("exec", "--detach", "--pid-file", tmp_path / "pid", "--process", tmp_path / "process.json", "t-proc")

    ended(int((tmp_path / "pid").read_text()))
    assert (bundle.rootfs / "by-exec").read_text() == "done\n"


def test_exec_says_what_cannot_be_executed(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sleep", "1000")
    created(oci, bundle, "t-bad", tmp_path / "out")
    oci("start", "t-bad")

    done = oci("exec", "t-bad", "nothing-here", check=False)

    assert (done.returncode, "executable file not found" in done.stderr) == (1, True)


def test_pause_stops_everything_until_resume(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sh", "-c", "while :; do :; done")
    created(oci, bundle, "t-pause", tmp_path / "out")
    oci("start", "t-pause")
    pid = oci.state("t-pause")["pid"]
    oci("pause", "t-pause")

    assert oci.state("t-pause")["status"] == "paused"
    used = [Path(f"/proc/{pid}/stat").read_text().split()[13] for _ in range(2)]
    assert used[0] == used[1]
    assert oci("exec", "t-pause", "true", check=False).returncode == 1
    oci("resume", "t-pause")
    assert oci.state("t-pause")["status"] == "running"


def test_list_and_ps_show_what_runs(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    bundle.write("sh", "-c", "sleep 1000 & exec sleep 1001")
    created(oci, bundle, "t-list", tmp_path / "out")
    oci("start", "t-list")
    while len(pids := json.loads(oci("ps", "--format", "json", "t-list").stdout)) < 2:
        pass  # the program forks when it comes to it

    table = oci("ps", "t-list").stdout.splitlines()

    assert len(table) == 3
    assert oci.state("t-list")["pid"] in pids
    assert oci.ids() == ["t-list"]
    assert [row["id"] for row in json.loads(oci("list", "--format", "json").stdout)] == ["t-list"]


def test_hooks_run_at_their_points_with_the_state(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    def hook(point: str, where: str = "") -> list[dict[str, Any]]:
        script = f"cat > {where or tmp_path}/{point}.json; echo {point} >> {where or tmp_path}/order"
        return [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]

    def change(config: dict[str, Any]) -> None:
        config["annotations"] = {"who": "test"}
        host = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        config["hooks"] = {point: hook(point) for point in host} | {"startContainer": hook("startContainer", "/tmp")}

    bundle.write("sh", "-c", "echo program >> /tmp/order", change=change)
    oci("run", "--bundle", bundle.path, "t-hooks")

    assert (tmp_path / "order").read_text().split() == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    assert (bundle.rootfs / "tmp/order").read_text().split() == ["startContainer", "program"]
    points = ("prestart", "createContainer", "poststart", "poststop")
    states = {point: json.loads((tmp_path / f"{point}.json").read_text()) for point in points}
    assert {state["id"] for state in states.values()} == {"t-hooks"}
    assert {state["annotations"]["who"] for state in states.values()} == {"test"}
    assert [states[point]["status"] for point in ("prestart", "poststart", "poststop")] == ["creating", "running", "stopped"]
    assert states["prestart"]["pid"] > 1


@pytest.mark.parametrize("point", ["prestart", "createRuntime", "createContainer"])
def test_a_hook_that_fails_leaves_no_container(oci: Oci, bundle: Bundle, point: str) -> None:
    bundle.write("true", change=lambda c: c.update(hooks={point: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no >&2; exit 3"]}]}))

    done = oci("create", "--bundle", bundle.path, "t-hook", check=False)

    assert (done.returncode, "ended with 3: no" in done.stderr) == (1, True)
    assert oci.ids() == []
    assert not (oci.root / "t-hook").exists()


def test_the_terminals_master_goes_to_the_console_socket(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"] |= {"terminal": True, "consoleSize": {"height": 33, "width": 77}}

    bundle.write("sh", "-c", "tty; stty size; test -c /dev/console && echo console", change=change)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen(1)
        oci("create", "--bundle", bundle.path, "--console-socket", tmp_path / "console", "t-tty")
        sender, _ = listener.accept()
        with sender:
            _, ancillary, _, _ = sender.recvmsg(256, socket.CMSG_LEN(4))
    master = array.array("i", ancillary[0][2])[0]
    oci("start", "t-tty")
    shown = b""
    try:
        while data := os.read(master, 4096):
            shown += data
    except OSError:
        pass  # EIO: the last of its programs has closed it
    os.close(master)

    assert shown.decode().split() == ["/dev/pts/0", "33", "77", "console"]


def test_a_terminal_without_a_console_socket_is_refused(oci: Oci, bundle: Bundle) -> None:
    bundle.write("true", change=lambda c: c["process"].update(terminal=True))

    assert "--console-socket" in oci("create", "--bundle", bundle.path, "t-notty", check=False).stderr


def test_killing_the_creator_leaves_a_container_that_can_be_deleted(oci: Oci, bundle: Bundle, tmp_path: Path) -> None:
    marker = tmp_path / "reached"
    os.mkfifo(marker)
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"echo $PPID > {marker}; exec sleep 1000"], "env": ["PATH=/usr/bin:/bin"]}
    bundle.write("true", change=lambda c: c.update(hooks={"createRuntime": [hook]}))
    with subprocess.Popen([*oci.argv, "create", "--bundle", str(bundle.path), "t-kill"], start_new_session=True) as creator:
        marker.read_text()
        os.killpg(creator.pid, signal.SIGKILL)
    oci("delete", "--force", "t-kill")

    assert not (oci.root / "t-kill").exists()
    bundle.write("true")
    oci("run", "--bundle", bundle.path, "t-kill")


def test_signals_to_run_go_to_the_program(oci: Oci, bundle: Bundle) -> None:
    bundle.write("sh", "-c", "trap 'echo got; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    with subprocess.Popen([*oci.argv, "run", "--bundle", str(bundle.path), "t-fwd"], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)

        assert running.stdout.read() == "got\n"
    assert running.returncode == 4


def test_a_spec_to_start_from_runs(oci: Oci, bundle: Bundle) -> None:
    oci("spec", "--bundle", bundle.path)
    config = json.loads((bundle.path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["echo", "fine"]}
    (bundle.path / "config.json").write_text(json.dumps(config))

    assert oci("run", "--bundle", bundle.path, "t-spec").stdout == "fine\n"
    assert oci("spec", "--bundle", bundle.path, check=False).returncode == 1  # never over a config that is there


def test_features_are_those_of_the_tables(oci: Oci) -> None:
    told = json.loads(oci("features").stdout)

    assert {"createContainer", "poststop"} <= set(told["hooks"])
    assert {"rro", "rbind", "tmpcopyup", "rslave"} <= set(told["mountOptions"])
    assert "CAP_SYS_ADMIN" in told["linux"]["capabilities"]
