"""The life of containers for real: ps, logs, wait, stop, kill, restart, rm, inspect, top, stats, diff, commit, export, prune."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from sandbox.image.store import Store
from tests.support.command_line import CommandLine, read_until
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]
PS_KEYS = {
    "Command", "CreatedAt", "ID", "Image", "Labels", "LocalVolumes", "Mounts", "Names", "Networks", "Ports", "RunningFor", "State",
    "Status",
}  # fmt: skip


@pytest.fixture
def web(sandbox: CommandLine) -> str:
    """The id of a running container `web`."""
    script = "echo started; echo bad >&2; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    identifier = sandbox.ok("run", "-d", "--name", "web", "-l", "team=a", "busybox", "sh", "-c", script).out.strip()
    with sandbox.going("logs", "-f", "web") as logs:
        assert logs.stdout
        read_until(logs.stdout.fileno(), b"ready\n")
    return identifier


def test_d_prints_the_whole_id(sandbox: CommandLine, web: str) -> None:
    assert len(web) == 64
    assert int(web, 16)
    assert sandbox.ok("ps", "-q", "--no-trunc").lines == [web]


def test_ps_shows_what_runs_in_dockers_columns(sandbox: CommandLine, web: str) -> None:
    head, row = sandbox.ok("ps").lines
    assert head.split() == ["CONTAINER", "ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]
    assert head.startswith("CONTAINER ID   IMAGE     COMMAND")
    assert row.startswith(f"{web[:12]}   busybox   \"sh -c 'echo started…")
    assert " Up " in row
    assert row.endswith("web")


def test_ps_as_json_has_dockers_keys(sandbox: CommandLine, web: str) -> None:
    row = sandbox.json("ps", "--format", "json")
    assert set(row) == PS_KEYS
    assert (row["ID"], row["Names"], row["State"], row["Labels"], row["Image"]) == (web[:12], "web", "running", "team=a", "busybox")


def test_ps_takes_templates_and_refuses_what_it_does_not_know(sandbox: CommandLine, web: str) -> None:
    assert sandbox.ok("ps", "--format", "{{.Names}}={{.State}}").out == "web=running\n"
    assert sandbox.ok("ps", "--format", r"table {{.Names}}\t{{.State}}").lines == ["NAMES     STATE", "web       running"]
    done = sandbox("ps", "--format", "{{.Name}}")
    assert (done.status, done.err) == (1, "sandbox: template: no field .Name\nhint: did you mean .Names?\n")


def test_ps_filters_and_orders(sandbox: CommandLine, web: str) -> None:
    sandbox.ok("create", "--name", "idle", "busybox", "true")
    assert sandbox("run", "--name", "failed", "busybox", "false").status == 1

    def names(*words: str) -> list[str]:
        return sandbox.ok("ps", "--format", "{{.Names}}", *words).lines

    assert names() == ["web"]
    assert names("-a") == ["failed", "idle", "web"]
    assert names("-l") == ["failed"]
    assert names("-n", "2") == ["failed", "idle"]
    assert names("-f", "status=created") == ["idle"]
    assert names("-f", "exited=1") == ["failed"]
    assert names("-a", "-f", "name=^f", "-f", "name=^i") == ["failed", "idle"]
    assert names("-f", "label=team") == ["web"]
    assert names("-a", "-f", "label=team=b") == []
    assert names("-a", "-f", "ancestor=busybox") == ["failed", "idle", "web"]
    assert names("-a", "-f", "since=web") == ["failed", "idle"]
    assert names("-a", "-f", "before=idle") == ["web"]
    assert sandbox("ps", "-f", "colour=red").status == 1


def test_names_and_unique_prefixes_of_ids_are_found(sandbox: CommandLine, web: str) -> None:
    for name in ("web", web, web[:12], web[:4]):
        assert sandbox.ok("inspect", "-f", "{{.Id}}", name).out.strip() == web
    assert sandbox("inspect", "we").status == 1


def test_logs_keep_the_streams_apart(sandbox: CommandLine, web: str) -> None:
    done = sandbox.ok("logs", web)
    assert (done.out, done.err) == ("started\nready\n", "bad\n")


def test_logs_take_a_tail_a_time_and_stamps(sandbox: CommandLine) -> None:
    web = sandbox.ok("run", "-d", "busybox", "sh", "-c", "echo started; echo ready").out.strip()
    sandbox.ok("wait", web)
    assert sandbox.ok("logs", "-n", "1", web).out == "ready\n"
    assert sandbox.ok("logs", "--tail", "all", web).out == "started\nready\n"
    stamp, text = sandbox.ok("logs", "-t", "-n", "1", web).out.split()
    assert text == "ready"
    assert sandbox.ok("logs", "--since", "1h", web).out == "started\nready\n"
    assert sandbox.ok("logs", "--since", "2100-01-01T00:00:00Z", web).out == ""
    assert sandbox.ok("logs", "--until", "2000-01-01", web).out == ""
    assert stamp.endswith("Z")
    assert sandbox("logs", "-n", "many", web).status == 125


def test_logs_follow_until_the_end(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "pipe", "busybox", "sh", "-c", "mkfifo /tmp/f; echo first; read x < /tmp/f; echo got $x")
    with sandbox.going("logs", "-f", "pipe") as logs:
        assert logs.stdout
        assert read_until(logs.stdout.fileno(), b"first\n") == b"first\n"
        sandbox("exec", "pipe", "sh", "-c", "while ! test -p /tmp/f; do :; done; echo word > /tmp/f")  # the container may end first
        assert read_until(logs.stdout.fileno(), b"word\n") == b"got word\n"
        assert logs.wait(timeout=30) == 0


def test_stop_lets_the_program_end_and_wait_tells_its_code(sandbox: CommandLine, web: str) -> None:
    with sandbox.going("wait", "web") as waiting:
        assert sandbox.ok("stop", "web").out == "web\n"
        assert waiting.wait(timeout=30) == 0
        assert waiting.stdout
        assert waiting.stdout.read() == b"5\n"
    assert sandbox.ok("ps", "-a", "--format", "{{.Status}}").out.startswith("Exited (5) ")


def test_stop_kills_what_does_not_listen(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "deaf", "busybox", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    with sandbox.going("logs", "-f", "deaf") as logs:
        assert logs.stdout
        read_until(logs.stdout.fileno(), b"ready\n")
    sandbox.ok("stop", "-t", "0", "deaf")
    assert sandbox.ok("wait", "deaf").out == "137\n"


def test_kill_sends_the_signal_named(sandbox: CommandLine, web: str) -> None:
    assert sandbox.ok("kill", "-s", "TERM", "web").out == "web\n"
    assert sandbox.ok("wait", "web").out == "5\n"
    done = sandbox("kill", "web")
    assert done.status == 1
    assert "is not running" in done.err
    assert sandbox("kill", "-s", "NOPE", "web").status == 125


def test_start_and_restart_run_it_again_with_what_it_wrote(sandbox: CommandLine) -> None:
    assert sandbox("run", "--name", "count", "busybox", "sh", "-c", "echo x >> /runs; wc -l < /runs").out == "1\n"
    assert sandbox.ok("start", "-a", "count").out == "2\n"
    assert sandbox.ok("start", "count").out == "count\n"
    sandbox.ok("wait", "count")
    sandbox.ok("restart", "count")
    sandbox.ok("wait", "count")
    assert sandbox.ok("logs", "count").out == "1\n2\n3\n4\n"


def test_rm_refuses_what_runs_unless_forced(sandbox: CommandLine, web: str) -> None:
    done = sandbox("rm", "web")
    assert done.status == 1
    assert "hint: " in done.err
    assert sandbox.ok("rm", "-f", "web").out == "web\n"
    assert sandbox("rm", "web").status == 1
    assert sandbox.ok("rm", "-f", "web").out == ""


def test_several_names_are_all_tried(sandbox: CommandLine) -> None:
    sandbox.ok("create", "--name", "one", "busybox", "true")
    sandbox.ok("create", "--name", "two", "busybox", "true")
    done = sandbox("rm", "one", "nope", "two")
    assert (done.status, done.out) == (1, "one\ntwo\n")
    assert "nope: no such container" in done.err


def test_create_then_start(sandbox: CommandLine) -> None:
    identifier = sandbox.ok("create", "--name", "later", "busybox", "echo", "now").out.strip()
    assert sandbox.ok("ps", "-a", "--format", "{{.Status}}").out == "Created\n"
    assert sandbox.ok("start", "-a", identifier[:8]).out == "now\n"


def test_inspect_is_a_docker_shaped_array(sandbox: CommandLine, web: str) -> None:
    [facts] = sandbox.json("inspect", "web")
    assert facts["Id"] == web
    assert facts["State"]["Running"] is True
    assert facts["Config"]["Labels"] == {"team": "a"}
    assert sandbox.ok("inspect", "-f", "{{.State.Status}} {{json .Config.Labels}}", "web").out == 'running {"team":"a"}\n'
    done = sandbox("inspect", "web", "nope")
    assert done.status == 1
    assert len(json.loads(done.out)) == 1
    assert "nope" in done.err


def test_top_lists_processes_with_this_machines_pids(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "web", "busybox", "sleep", "301")
    head, *rows = sandbox.ok("top", "web").lines
    assert head.split() == ["UID", "PID", "PPID", "TIME", "CMD"]
    [row] = [row.split() for row in rows if "sleep 301" in row]
    assert Path(f"/proc/{row[1]}/cmdline").read_bytes() == b"sleep\x00301\x00"


@requires("memory")
def test_stats_measure_what_runs(sandbox: CommandLine) -> None:
    sandbox.ok("run", "-d", "--name", "web", "-m", "64m", "busybox", "sleep", "300")
    row = sandbox.json("stats", "--no-stream", "--format", "json")
    assert set(row) == {"BlockIO", "CPUPerc", "Container", "ID", "MemPerc", "MemUsage", "Name", "NetIO", "PIDs"}
    assert row["Name"] == "web"
    assert row["MemUsage"].endswith(" / 64MiB")
    assert not row["MemUsage"].startswith("0B")
    assert sandbox("stats", "--no-stream", "nope").status == 1


def test_stats_go_on_until_interrupted(sandbox: CommandLine, web: str) -> None:
    with sandbox.going("stats", "--format", "{{.Name}}") as stats:
        assert stats.stdout
        read_until(stats.stdout.fileno(), b"web\nweb\n")
        stats.send_signal(signal.SIGINT)
        assert stats.wait(timeout=30) == 130


def test_diff_commit_and_export_show_what_it_wrote(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("run", "--name", "job", "busybox", "sh", "-c", "echo hi > /new; rm /etc/group; echo more >> /etc/passwd")
    assert set(sandbox.ok("diff", "job").lines) == {"A /new", "C /etc", "D /etc/group", "C /etc/passwd"}
    identifier = sandbox.ok("commit", "-m", "why", "-a", "me", "-c", 'CMD ["cat", "/new"]', "job", "job:1").out.strip()
    assert sandbox.ok("run", "--rm", "job:1").out == "hi\n"
    assert sandbox("run", "--rm", identifier[7:19], "test", "-e", "/etc/group").status == 1
    assert sandbox.ok("inspect", "--type", "image", "-f", "{{.Author}}", "job:1").out == "me\n"
    sandbox.ok("export", "-o", str(tmp_path / "job.tar"), "job")
    with tarfile.open(tmp_path / "job.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert "new" in names
    assert "etc/group" not in names
    piped = subprocess.run(sandbox.argv("export", "job"), capture_output=True, check=True).stdout
    assert piped[257:262] == b"ustar"


def test_prune_asks_and_then_removes_what_stopped(sandbox: CommandLine, web: str) -> None:
    sandbox.ok("run", "--name", "done", "busybox", "true")
    done = sandbox.ok("prune", stdin=b"n\n")
    assert "[y/N]" in done.out
    assert len(sandbox.ok("ps", "-aq").lines) == 2
    done = sandbox.ok("container", "prune", stdin=b"y\n")
    assert "Deleted Containers:" in done.out
    assert sandbox.ok("ps", "-aq", "--no-trunc").lines == [web]
    assert "Total reclaimed space" in sandbox.ok("system", "prune", "-f").out


def test_rm_option_leaves_nothing_on_disk(sandbox: CommandLine) -> None:
    sandbox.ok("run", "--rm", "busybox", "sh", "-c", "echo x > /file")
    assert os.listdir(sandbox.root / "containers") == []


# cp -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
def test_cp_goes_both_ways_whether_it_runs_or_not(sandbox: CommandLine, tmp_path: Path, running: bool) -> None:
    sandbox.ok("run", "-d", "--name", "box", "busybox", *(["sleep", "300"] if running else ["true"]))
    if not running:
        sandbox.ok("wait", "box")
    here = tmp_path / "here"
    (here / "tree/sub").mkdir(parents=True)
    (here / "tree/sub/file").write_text("content")
    sandbox.ok("cp", f"{here}/tree", "box:/tmp")
    sandbox.ok("cp", f"{here}/tree", "box:/tmp/renamed")
    sandbox.ok("cp", f"{here}/tree/.", "box:/root")
    sandbox.ok("cp", f"{here}/tree/sub/file", "box:/etc/new-name")
    sandbox.ok("cp", "box:/tmp/tree/sub/file", str(here / "one"))
    sandbox.ok("cp", "box:/tmp/renamed", str(here))
    sandbox.ok("cp", "box:/root/.", str(here / "contents"))
    sandbox.ok("cp", "box:/etc/new-name", str(here))
    for path in ("one", "renamed/sub/file", "contents/sub/file", "new-name"):
        assert (here / path).read_text() == "content", path


def test_cp_speaks_tar_with_a_dash(sandbox: CommandLine, tmp_path: Path) -> None:
    sandbox.ok("create", "--name", "box", "busybox", "true")
    packed = subprocess.run(sandbox.argv("cp", "box:/etc/passwd", "-"), capture_output=True, check=True).stdout
    (tmp_path / "x.tar").write_bytes(packed)
    with tarfile.open(tmp_path / "x.tar") as archive:
        assert archive.getnames() == ["passwd"]
    sandbox.ok("cp", "-", "box:/tmp", stdin=packed)
    assert "A /tmp/passwd" in sandbox.ok("diff", "box").lines


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("box:/nope", "there", "no such file"),
        ("nope:/etc", "there", "no such container"),
        ("box:/etc/passwd", "there/", "no such directory"),
        ("/no/such/file", "box:/tmp", "no such file"),
        ("/etc/hostname", "box:/no/where/", "no such directory"),
        ("/etc", "box:/etc/passwd", "onto a file"),
        ("a", "b", "neither side"),
        ("box:/a", "box:/b", "both sides"),
    ],
)
def test_a_copy_that_cannot_be_says_why(sandbox: CommandLine, tmp_path: Path, source: str, target: str, message: str) -> None:
    sandbox.ok("create", "--name", "box", "busybox", "true")
    done = sandbox("cp", source, str(tmp_path / target) + ("/" if target.endswith("/") else "") if target.startswith("there") else target)
    assert done.status == 1
    assert message in done.err


@requires("root")  # sets a capability from outside
def test_export_and_cp_keep_the_attributes_of_files(sandbox: CommandLine, tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # CAP_NET_RAW, as ping has it
    sandbox.ok("run", "--name", "made", "busybox", "sh", "-c", "mkdir /d; echo ping > /d/ping")
    upper = sandbox.root / "containers" / sandbox.json("inspect", "made")[0]["Id"] / "upper"
    os.setxattr(upper / "d/ping", "security.capability", capability)
    os.setxattr(upper / "d/ping", "user.note", b"\xffnot text\0")
    os.setxattr(upper / "d", "user.kind", b"tools")
    sandbox.ok("export", "-o", str(tmp_path / "whole.tar"), "made")
    sandbox.ok("import", str(tmp_path / "whole.tar"), "again")
    store = Store(sandbox.root)
    snapshot = store.snapshot(store.find("again").top).path
    assert os.getxattr(snapshot / "d/ping", "security.capability")[:8] == capability[:8]
    assert os.getxattr(snapshot / "d/ping", "user.note") == b"\xffnot text\0"
    assert os.getxattr(snapshot / "d", "user.kind") == b"tools"
    with tarfile.open(tmp_path / "whole.tar") as archive:
        found = {name for member in archive for name in member.pax_headers if name.startswith("SCHILY.xattr.")}
    assert found == {"SCHILY.xattr.security.capability", "SCHILY.xattr.user.note", "SCHILY.xattr.user.kind"}


def test_a_link_in_a_container_cannot_lead_a_copy_out_of_it(sandbox: CommandLine, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("precious")
    sandbox.ok("run", "--name", "box", "busybox", "sh", "-c", f"ln -s {canary} /tmp/link; mkdir /tmp/d; ln -s {tmp_path} /tmp/d/out")
    done = sandbox("cp", "-L", "box:/tmp/link", str(tmp_path / "stolen"))
    assert done.status == 1
    assert not (tmp_path / "stolen").exists()
    (tmp_path / "new").write_text("owned")
    sandbox("cp", str(tmp_path / "new"), "box:/tmp/d/out/canary")
    assert canary.read_text() == "precious"
    sandbox.ok("cp", "box:/tmp/d", str(tmp_path / "copied"))
    assert os.readlink(tmp_path / "copied/out") == str(tmp_path)
    assert canary.read_text() == "precious"


def test_cp_and_export_see_what_the_container_sees(sandbox: CommandLine, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "kept").write_text("of the host")
    program = "echo memory > /ram/file; echo own > /own; echo up; exec sleep 300"
    sandbox.ok("run", "-d", "--name", "box", "--tmpfs", "/ram", "-v", f"{volume}:/data", "busybox", "sh", "-c", program)
    with sandbox.going("logs", "-f", "box") as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == b"up\n"
    sandbox.ok("cp", "box:/ram/file", str(tmp_path / "file"))
    sandbox.ok("cp", "box:/data", str(tmp_path / "data"))
    assert (tmp_path / "file").read_text() == "memory\n"
    assert (tmp_path / "data/kept").read_text() == "of the host"
    sandbox.ok("export", "-o", str(tmp_path / "whole.tar"), "box")
    with tarfile.open(tmp_path / "whole.tar") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {"own", "bin/busybox"} <= names
    assert not {"ram/file", "data/kept", "etc/hostname", "proc/1"} & names


def test_a_directory_exchanged_for_a_link_while_it_is_copied_gives_nothing_of_the_host(sandbox: CommandLine, tmp_path: Path) -> None:
    """CVE-2018-15664. The canary's path leads to another file inside: whatever a copy takes through the link is the container's."""
    (tmp_path / "canary").write_text("precious")
    program = (
        f"mkdir -p {tmp_path}; echo inner > {tmp_path}/canary; mkdir -p /a/d; echo mine > /a/d/canary; ln -s {tmp_path} /a/l; echo up; "
        "while :; do mv /a/d /a/x; mv /a/l /a/d; mv /a/d /a/l; mv /a/x /a/d; done"
    )
    sandbox.ok("run", "-d", "--name", "box", "busybox", "sh", "-c", program)
    with sandbox.going("logs", "-f", "box") as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == b"up\n"
    got = []
    for number in range(12):
        target = tmp_path / f"copy{number}"
        if sandbox("cp", "-L", "box:/a/d/canary", str(target)).status == 0:
            got.append(target.read_text())
    assert set(got) <= {"mine\n", "inner\n"}
    assert got, "the copies failed, so nothing was tried"
    assert (tmp_path / "canary").read_text() == "precious"


def test_logs_rotate_and_are_read_over_all_files(sandbox: CommandLine) -> None:
    script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done"
    web = sandbox.ok("run", "-d", "--log-opt", "max-size=10k", "--log-opt", "max-file=3", "busybox", "sh", "-c", script).out.strip()
    assert sandbox.ok("logs", "-f", web).lines[-1] == "line 399"
    sandbox.ok("wait", web)
    kept = sandbox.ok("logs", web).lines
    assert kept == [f"line {number}" for number in range(400 - len(kept), 400)]
    assert 200 < len(kept) < 400
    about = sandbox.json("inspect", web)[0]
    assert about["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10240", "max-file": "3"}}
    files = sorted(path.name for path in Path(about["LogPath"]).parent.glob("log.json*"))
    assert files == ["log.json", "log.json.1", "log.json.2"]


def test_no_log_is_kept_without_a_driver(sandbox: CommandLine) -> None:
    web = sandbox.ok("run", "-d", "--log-driver", "none", "busybox", "echo", "secret").out.strip()
    sandbox.ok("wait", web)
    refused = sandbox("logs", web)
    assert (refused.status, refused.out) == (1, "")
    assert "--log-driver none" in refused.err
    assert not list((sandbox.root / "containers" / web).glob("log.json*"))


@pytest.mark.parametrize(
    "flags",
    [["max-file=3"], ["max-size=0"], ["max-size=1k", "max-file=0"], ["compress=true"], ["max-size=big"], ["max-size=1k", "max-file=x"]],
)
def test_log_options_that_make_no_sense_are_refused(sandbox: CommandLine, flags: list[str]) -> None:
    done = sandbox("run", *(word for flag in flags for word in ("--log-opt", flag)), "busybox", "true")
    assert done.status == 125
    assert sandbox.ok("ps", "-aq").out == ""
