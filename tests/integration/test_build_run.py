"""RUN for real, in containers above the layers so far, on a busybox base; and COPY beside what the Linux overlay then shows."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.build.builder import Builder, BuildEvent, BuildRequest, StepError, StepOutput
from sandbox.errors import StepFailed
from sandbox.image.tree import Entry
from sandbox.runtime.spec import Completed
from tests.support.building import NOW, Workshop
from tests.support.host import requires
from tests.support.image_tars import owner

pytestmark = [requires("overlay", "userns", "tool:busybox"), pytest.mark.anybody]


def output(workshop: Workshop, stream: str = "stdout") -> str:
    return b"".join(event.data for event in workshop.events if isinstance(event, StepOutput) and event.stream == stream).decode()


def printed(workshop: Workshop, lines: str, build_args: Mapping[str, str] | None = None) -> str:
    """What a Dockerfile's RUN steps print."""
    workshop.build("FROM busybox\n" + lines, build_args=build_args)
    return output(workshop)


# What a RUN is


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("RUN echo $0 one", "/bin/sh one\n"),
        ('RUN ["echo", "$HOME"]', "$HOME\n"),
        ('SHELL ["/bin/sh", "-ec"]\nRUN case $- in *e*) echo e;; esac', "e\n"),
        ("RUN echo a && \\\n    # comment\n    echo b", "a\nb\n"),
        ("RUN <<EOF\necho one\necho $((1+1))\nEOF", "one\n2\n"),
        ("RUN <<EOF\n#!/bin/cat\nas it is\nEOF", "#!/bin/cat\nas it is\n"),
        ("RUN <<-EOF\n\techo tab\n\tEOF", "tab\n"),
        ("RUN cat <<A - <<B\nfirst\nA\nsecond\nB", "second\n"),
        ("RUN cat <<'A'\n$HOME\nA", "$HOME\n"),
        ("RUN echo out; echo err >&2", "out\n"),
        ("RUN cat", ""),  # stdin is empty
        ("RUN pwd\nWORKDIR /made/for\nRUN pwd", "/\n/made/for\n"),
        ("RUN id -u; id -g; echo $HOME\nUSER app\nRUN id -u; id -g; echo $HOME", "0\n0\n/root\n1000\n1001\n/home/app\n"),
        ("USER 7:8\nRUN id -u; id -g; echo $HOME", "7\n8\n/\n"),
        ("ENV HOME=/h\nRUN echo $HOME", "/h\n"),
        ("ARG A=1\nENV B=2\nRUN echo $A $B $C", "1 2\n"),
        ("ARG A=arg\nENV A=env\nRUN echo $A", "env\n"),
        ("RUN hostname", "buildkitsandbox\n"),
    ],
)
def test_run_prints(workshop: Workshop, lines: str, expected: str) -> None:
    assert printed(workshop, lines) == expected


def test_errors_of_the_program_are_a_stream_of_their_own(workshop: Workshop) -> None:
    printed(workshop, "RUN echo out; echo err >&2")
    assert output(workshop, "stderr") == "err\n"


def test_path_has_dockers_default_when_the_image_sets_none(workshop: Workshop) -> None:
    text = "FROM scratch\nCOPY --from=busybox / /\nRUN echo $PATH\n"
    workshop.build(text)
    assert output(workshop) == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"


def test_proxies_reach_a_run_without_arg_and_do_not_count(workshop: Workshop) -> None:
    lines = "RUN echo $HTTP_PROXY $no_proxy"
    assert printed(workshop, lines, {"HTTP_PROXY": "p1", "no_proxy": "n"}) == "p1 n\n"
    image = workshop.build("FROM busybox\n" + lines, build_args={"HTTP_PROXY": "p2"})
    assert workshop.cached() == [True]
    assert image.config.value.config.env == ["PATH=/bin"]
    assert not any("p1" in entry.created_by for entry in image.config.value.history)


def test_what_is_written_is_in_the_layer_and_what_is_removed_is_gone(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN mkdir /d && echo 1 > /d/one && echo 2 > /d/two\nRUN rm /d/one /etc/group && ln -s two /d/link\n"
    image = workshop.build(text)
    tree = workshop.tree(image)
    assert [entry.name for entry in tree.scandir("/d")] == ["link", "two"]
    assert tree.lookup("/etc/group") is None
    assert len(image.diff_ids) == 3


def test_run_that_changes_nothing_makes_no_layer(workshop: Workshop) -> None:
    image = workshop.build("FROM busybox\nRUN true\nRUN echo a > /etc/a; rm /etc/a\nRUN ls /etc /proc /dev\n")
    assert [entry.empty_layer for entry in image.config.value.history][1:] == [True, True, True]
    assert [entry.name for entry in workshop.tree(image).scandir("/etc")] == ["group", "passwd"]


def test_mount_points_of_the_runtime_are_not_in_the_layer(workshop: Workshop) -> None:
    image = workshop.build("FROM busybox\nRUN echo x > /etc/motd\n")
    upper = workshop.store.snapshot(image.chain_ids[-1]).path
    assert sorted(str(path.relative_to(upper)) for path in upper.rglob("*")) == ["etc", "etc/motd"]


def owned(entry: Entry) -> tuple[int, int]:
    """Whose it is in the image."""
    return owner(os.fsencode(entry.source), entry.stat)


def test_owners_are_the_images_own(workshop: Workshop) -> None:
    tree = workshop.tree(workshop.build("FROM busybox\nUSER app\nRUN touch /tmp/mine\nUSER root\nRUN touch /tmp/roots\n"))
    assert [(e.name, owned(e)) for e in tree.scandir("/tmp")] == [("mine", (1000, 1001)), ("roots", (0, 0))]


def test_history_of_run_names_shell_and_arguments(workshop: Workshop) -> None:
    text = 'FROM busybox\nARG A=1\nARG B=x\nRUN echo  hi\nRUN ["true"]\nRUN <<EOF\ntrue\nEOF\n'
    image = workshop.build(text, build_args={"A": "2"})
    assert [entry.created_by for entry in image.config.value.history][3:] == [
        "RUN |2 A=2 B=x /bin/sh -c echo  hi",
        "RUN |2 A=2 B=x true",
        "RUN |2 A=2 B=x /bin/sh -c true\n",
    ]


def test_network_of_a_run_is_the_hosts_or_none(workshop: Workshop) -> None:
    here = os.stat("/proc/self/ns/net").st_ino
    text = "FROM busybox\nRUN readlink /proc/self/ns/net\nRUN --network=none readlink /proc/self/ns/net\n"
    workshop.build(text)
    shared, own = output(workshop).split()
    assert shared == f"net:[{here}]" != own
    workshop.build(text.replace("--network=none", "--network=host"), network="none", no_cache=True)
    own, shared = output(workshop).split()
    assert shared == f"net:[{here}]" != own


def test_container_root_is_not_host_root(workshop: Workshop) -> None:
    mapped = printed(workshop, "RUN cat /proc/self/uid_map").split()
    assert mapped[0] == "0"
    assert int(mapped[1]) > 0


# The cache


TEXT = """FROM busybox
ARG WHO=me
ENV A=1
RUN echo $WHO > /one
RUN echo 2 > /two
COPY f /f
RUN cat /f > /three
"""


def test_changed_run_redoes_itself_and_what_follows(workshop: Workshop) -> None:
    workshop.file("f", "content")
    first = workshop.build(TEXT)
    assert workshop.build(TEXT).id == first.id
    assert workshop.cached() == [True] * 6
    workshop.build(TEXT.replace("echo 2", "echo 3"))
    assert workshop.cached() == [True, True, True, False, False, False]
    workshop.file("f", "changed")
    workshop.build(TEXT)
    assert workshop.cached() == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("old", "new"),
    [("ENV A=1", "ENV A=2"), ("ENV A=1", "USER app:0"), ("ENV A=1", "WORKDIR /tmp"), ("ENV A=1", 'SHELL ["/bin/sh", "-uc"]')],
    ids=["environment", "user", "directory", "shell"],
)
def test_what_a_run_sees_is_in_its_key(workshop: Workshop, old: str, new: str) -> None:
    text = "FROM busybox\nENV A=1\nRUN touch /tmp/x\n"
    workshop.build(text)
    workshop.build(text.replace(old, new))
    assert workshop.cached()[-1] is False


def test_argument_in_scope_is_in_the_key_and_another_is_not(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN echo before > /b\nARG A=1\nRUN echo after > /a\n"
    workshop.build(text, build_args={"A": "1"})
    workshop.build(text, build_args={"A": "2"})
    assert workshop.cached() == [True, False, False]  # ARG itself: its value stands in the history


# Failure


def test_failed_run_tells_where_and_how(workshop: Workshop) -> None:
    text = "FROM busybox AS base\nCOPY f /f\nRUN echo some; for i in 1 2 3 4 5 6 7 8 9 10 11; do echo line $i >&2; done; exit 3\nCMD x\n"
    workshop.file("f")
    with pytest.raises(StepFailed) as caught:
        workshop.build(text)
    failed = caught.value
    assert str(failed).startswith("RUN echo some; for i in 1 2 3")
    assert str(failed).endswith(": exit code 3")
    assert isinstance(failed.completed, Completed)
    assert failed.completed.exit_code == 3
    assert failed.output.splitlines() == [f"line {n}" for n in range(2, 12)]
    before, line, after = failed.excerpt.splitlines()
    assert (before, line[:20], after) == ("  2 | COPY f /f", "> 3 | RUN echo some;", "  4 | CMD x")
    assert failed.hint == "look inside: sandbox run --rm -it build:failed sh"
    (event,) = [event for event in workshop.events if isinstance(event, StepError)]
    assert (event.index, event.total, event.stage, event.line, event.message) == (3, 4, "base", 3, str(failed))


def test_failed_run_leaves_the_last_good_state_and_is_not_remembered(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN echo good > /good\nRUN echo bad > /bad; exit 1\n"
    for _ in range(2):
        with pytest.raises(StepFailed):
            workshop.build(text)
    tree = workshop.tree(workshop.store.find("build:failed"))
    assert tree.read("/good") == b"good\n"
    assert tree.lookup("/bad") is None
    assert list((workshop.root / "store/drafts").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message", "code"),
    [
        ("RUN nosuchprogram", "exit code 127", 127),
        ("RUN kill -9 $$", "", 137),
        ('RUN ["/etc/passwd"]', "", 126),
        ("USER ghost\nRUN true", "ghost", None),
    ],
)
def test_run_that_cannot_end_well_is_a_failed_step(workshop: Workshop, line: str, message: str, code: int | None) -> None:
    with pytest.raises(StepFailed) as caught:
        workshop.build(f"FROM busybox\n{line}\n")
    assert message in str(caught.value)
    if code is not None:
        assert isinstance(caught.value.completed, Completed)
        assert caught.value.completed.exit_code == code


def test_interrupt_leaves_no_process_no_mount_and_no_draft(workshop: Workshop) -> None:
    """The first output of the step raises SIGINT in this thread, as Ctrl-C would while the builder waits."""
    events: list[BuildEvent] = []

    def interrupt(event: BuildEvent) -> None:
        events.append(event)
        if isinstance(event, StepOutput):
            signal.raise_signal(signal.SIGINT)

    request = BuildRequest(dockerfile="FROM busybox\nRUN echo begun; exec sleep 4217\n", now=NOW)
    with pytest.raises(KeyboardInterrupt):
        Builder(workshop.store, workshop.runtime, interrupt).build(request)
    assert isinstance(events[-1], StepError)
    found = subprocess.run(["pgrep", "-f", "sleep 4217"], capture_output=True, text=True, check=False)
    assert found.stdout == ""
    assert str(workshop.root) not in Path("/proc/self/mountinfo").read_text()
    assert list((workshop.root / "store/drafts").iterdir()) == []
    assert workshop.store.find("busybox")
    assert workshop.build("FROM busybox\nRUN echo again\n")


def test_two_builds_at_once_share_the_store(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN echo {n} > /own\nRUN echo same > /same\n"
    ids: dict[int, str] = {}

    def build(n: int) -> None:
        request = BuildRequest(dockerfile=text.format(n=n), now=NOW, tags=(f"app:{n}",))
        ids[n] = Builder(workshop.store, workshop.runtime).build(request).id

    threads = [threading.Thread(target=build, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(ids.values())) == 4
    for n in range(4):
        assert workshop.tree(workshop.store.find(f"app:{n}")).read("/own") == f"{n}\n".encode()


# COPY beside the real overlay


def test_copied_layer_reads_through_the_overlay_as_through_the_tree(workshop: Workshop) -> None:
    for name in ("a", "dir/b", "dir/sub/c"):
        workshop.file(name, name)
    (workshop.context / "dir/link").symlink_to("b")
    text = """FROM busybox
RUN mkdir -p /real/old && echo old > /real/old/x && ln -s real /alias
COPY --chown=app:staff dir /alias/
COPY a /alias/old/
COPY --chmod=4755 a /alias/old/x
RUN find /real | sort; cat /real/old/x /real/link; stat -c '%u %g %a' /real /real/b /real/sub /real/old/x
"""
    workshop.build(text)
    assert output(workshop).splitlines() == [
        "/real", "/real/b", "/real/link", "/real/old", "/real/old/a", "/real/old/x", "/real/sub", "/real/sub/c",
        "adir/b0 0 755", "1000 50 644", "1000 50 755", "0 0 4755",
    ]  # fmt: skip


def test_owner_is_kept_from_a_stage_and_roots_from_the_context(workshop: Workshop) -> None:
    workshop.file("f")
    if os.geteuid() == 0:
        os.chown(workshop.context / "f", 1234, 1234)
    text = """FROM busybox AS one
RUN mkdir -p /d/in && touch /d/in/f && chown -R 7:8 /d && chmod 700 /d/in
FROM busybox
COPY f /context
COPY --from=one /d /d
COPY --from=one --chown=app /d /e
"""
    tree = workshop.tree(workshop.build(text))
    expected = {
        "/context": (0, 0), "/d": (0, 0), "/d/in": (7, 8), "/d/in/f": (7, 8), "/e": (1000, 1001), "/e/in/f": (1000, 1001),
    }  # fmt: skip
    assert {path: owned(tree.stat(path)) for path in expected} == expected
    assert stat.S_IMODE(tree.stat("/d/in").stat.st_mode) == 0o700


@requires("root")
def test_capabilities_of_a_file_come_along_from_a_stage(workshop: Workshop) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    parent = workshop.build("FROM busybox\nRUN touch /ping\n", tags=("tools",))
    os.setxattr(workshop.store.snapshot(parent.chain_ids[-1]).path / "ping", "security.capability", capability)
    tree = workshop.tree(workshop.build("FROM busybox\nCOPY --from=tools /ping /bin/\n"))
    assert os.getxattr(tree.stat("/bin/ping").source, "security.capability")[:8] == capability[:8]


def test_workdir_is_made_for_the_user(workshop: Workshop) -> None:
    tree = workshop.tree(workshop.build("FROM busybox\nUSER app\nWORKDIR /srv/app\n"))
    assert [owned(tree.stat(path)) for path in ("/srv", "/srv/app")] == [(1000, 1001)] * 2


@requires("root")
def test_add_unpacks_a_root_file_system_with_owners_and_devices(workshop: Workshop, tmp_path: Path) -> None:
    with tarfile.open(workshop.context / "rootfs.tar.xz", "w:xz") as tar:
        for name, kind, more in (
            ("./", tarfile.DIRTYPE, {"mode": 0o755}),
            ("./dev", tarfile.DIRTYPE, {"mode": 0o755}),
            ("./dev/null", tarfile.CHRTYPE, {"mode": 0o666, "devmajor": 1, "devminor": 3}),
            ("./home/app", tarfile.DIRTYPE, {"mode": 0o700, "uid": 1000, "gid": 1001}),
            ("./bin/mount", tarfile.REGTYPE, {"mode": 0o4755}),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            for key, value in more.items():
                setattr(info, key, value)
            tar.addfile(info)
    tree = workshop.tree(workshop.build("FROM scratch\nADD rootfs.tar.xz /\n"))
    assert stat.S_ISCHR(tree.stat("/dev/null").stat.st_mode)
    assert tree.stat("/dev/null").stat.st_rdev == os.makedev(1, 3)
    assert (tree.stat("/home/app").stat.st_uid, tree.stat("/home/app").stat.st_gid) == (1000, 1001)
    assert stat.S_IMODE(tree.stat("/bin/mount").stat.st_mode) == 0o4755
    copied = workshop.tree(workshop.build("FROM scratch\nCOPY rootfs.tar.xz /\n"))
    assert copied.lookup("/rootfs.tar.xz")
    owned = workshop.tree(workshop.build("FROM busybox\nADD --chown=app rootfs.tar.xz /x\n"))
    assert (owned.stat("/x/bin/mount").stat.st_uid, owned.stat("/x").stat.st_uid) == (1000, 1000)


def test_links_a_run_leaves_behind_do_not_lead_copy_to_the_host(workshop: Workshop, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("alive")
    workshop.file("f", "dead")
    evil = f"FROM busybox AS evil\nRUN ln -s {canary} /link; ln -s {tmp_path} /dir; ln -s ../../../../../../..{canary} /up\n"
    tree = workshop.tree(workshop.build(evil + "COPY f /link\nCOPY f /up\nCOPY f /dir/canary\n"))
    assert tree.read(str(canary)) == b"dead"  # the same path inside the image
    assert canary.read_text() == "alive"
    with pytest.raises(StepFailed, match="not found"):
        workshop.build(evil + "FROM busybox\nCOPY --from=evil /link /stolen\n")
    with pytest.raises(StepFailed, match="/dir/: not found"):
        workshop.build(evil + "FROM busybox\nCOPY --from=evil /dir/ /stolen\n")
