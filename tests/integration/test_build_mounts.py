"""RUN --mount for real: what is mounted, what is kept between builds, and that nothing of it is in the layer."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.build.builder import Builder, BuildRequest, StepOutput
from sandbox.build.cachemounts import CacheMounts
from sandbox.build.settings import Settings
from sandbox.build.site import StepLimits
from sandbox.build.sshagent import open_agents
from sandbox.errors import DockerfileError, StepFailed
from sandbox.runtime.spec import Limits
from tests.support.building import NOW, PASSWD, Workshop, fill_busybox
from tests.support.host import requires

pytestmark = [requires("overlay", "userns", "tool:busybox"), pytest.mark.anybody]


def output(workshop: Workshop) -> str:
    return b"".join(event.data for event in workshop.events if isinstance(event, StepOutput) and event.stream == "stdout").decode()


def printed(workshop: Workshop, line: str, **how: object) -> str:
    workshop.build(f"FROM busybox\n{line}\n", **how)  # type: ignore[arg-type]
    return output(workshop)


# bind


def test_bind_shows_the_context_without_what_is_ignored_and_leaves_nothing(workshop: Workshop) -> None:
    workshop.file("src/a", "a")
    workshop.file("src/secret.env", "hidden")
    workshop.file(".dockerignore", "**/*.env\n")
    if os.geteuid() == 0:
        os.chown(workshop.context / "src/a", 1234, 1234)
    image = workshop.build("FROM busybox\nRUN --mount=target=/in,source=src cd /in; ls; cat a; stat -c ' %u:%g' a; ! touch b 2>/dev/null\n")
    assert output(workshop) == "a\na 0:0\n"
    assert len(image.diff_ids) == 1


def test_what_is_written_to_a_writable_bind_is_thrown_away(workshop: Workshop) -> None:
    workshop.file("src/a", "a")
    text = "FROM busybox AS one\nRUN mkdir /d && echo 1 > /d/f\nFROM busybox\n"
    text += (
        "RUN --mount=target=/c,source=src,rw --mount=from=one,source=/d,target=/s,rw echo x > /c/new; echo x > /s/f; ls /c /s; cat /s/f\n"
    )
    text += "RUN --mount=from=one,source=/d,target=/s cat /s/f; ls /c /s 2>&1 || true\n"
    image = workshop.build(text)
    assert output(workshop).split() == [
        "/c:",
        "a",
        "new",
        "/s:",
        "f",
        "x",
        "1",
        "ls:",
        "/c:",
        "No",
        "such",
        "file",
        "or",
        "directory",
        "/s:",
        "f",
    ]
    assert len(image.diff_ids) == 1
    assert (workshop.context / "src/a").read_text() == "a"
    assert not (workshop.context / "src/new").exists()


def test_bind_of_a_file_of_an_image_and_of_an_image_whole(workshop: Workshop) -> None:
    workshop.base("other", {"etc/conf": "of another image\n"})
    line = "RUN --mount=from=other,source=/etc/conf,target=/tmp/conf --mount=from=other,target=/other cat /tmp/conf /other/etc/conf"
    assert printed(workshop, line) == "of another image\n" * 2


def test_bind_counts_by_content(workshop: Workshop) -> None:
    workshop.file("src/a", "a")
    workshop.file("b", "b")
    text = "FROM busybox\nRUN --mount=target=/in,source=src cat /in/a\n"
    workshop.build(text)
    workshop.file("b", "other")
    os.utime(workshop.context / "src/a", (1, 1))
    workshop.build(text)
    assert workshop.cached() == [True]
    workshop.file("src/a", "changed")
    workshop.build(text)
    assert workshop.cached() == [False]
    assert output(workshop) == "changed"


def test_bind_from_a_stage_counts_by_content_not_by_how_it_came_about(workshop: Workshop) -> None:
    text = "FROM busybox AS one\nRUN mkdir /d; {}\nFROM busybox\nRUN --mount=from=one,source=/d,target=/in cat /in/a\n"
    workshop.build(text.format("echo a > /d/a"))
    workshop.build(text.format("echo a > /d/a; echo more > /other"))
    assert workshop.cached() == [False, True]
    workshop.build(text.format("echo b > /d/a"))
    assert workshop.cached() == [False, False]


def test_bind_of_nothing_says_so(workshop: Workshop) -> None:
    with pytest.raises(StepFailed, match="source=nope: not found in the build context"):
        workshop.build("FROM busybox\nRUN --mount=target=/in,source=nope true\n")
    with pytest.raises(DockerfileError, match="target must not be /"):
        workshop.build("FROM busybox\nRUN --mount=target=/ true\n")
    with pytest.raises(DockerfileError, match="no build context to mount from"):
        workshop.build("FROM busybox\nRUN --mount=target=/in true\n", context=False)


def test_links_in_the_context_do_not_lead_a_bind_out(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("alive")
    (workshop.context / "out").symlink_to(tmp_path)
    with pytest.raises(StepFailed, match="not found"):
        workshop.build("FROM busybox\nRUN --mount=target=/in,source=out/canary cat /in\n")


# cache


def test_cache_stays_between_builds_and_is_in_no_layer(workshop: Workshop) -> None:
    line = "RUN --mount=type=cache,target=/var/cache/x echo {} >> /var/cache/x/log; cat /var/cache/x/log"
    printed(workshop, line.format(1))
    image = workshop.build(f"FROM busybox\n{line.format(2)}\n")
    assert output(workshop) == "1\n2\n"
    assert len(image.diff_ids) == 1
    assert workshop.build(f"FROM busybox\n{line.format(1)}\n")
    assert workshop.cached() == [True]


def test_cache_is_known_by_id_and_made_as_asked(workshop: Workshop) -> None:
    printed(workshop, "RUN --mount=type=cache,id=k,target=/a,uid=1000,gid=1001,mode=0770 echo kept > /a/f")
    assert printed(workshop, "RUN --mount=type=cache,id=k,target=/b stat -c '%a %u:%g' /b; cat /b/f") == "770 1000:1001\nkept\n"
    assert printed(workshop, "RUN --mount=type=cache,target=/a ls /a") == ""


def test_cache_begins_with_what_it_is_from(workshop: Workshop) -> None:
    line = "RUN --mount=type=cache,id=begun,from=busybox,source=/etc,target=/c ls /c; echo x > /c/passwd; touch /c/new"
    assert printed(workshop, line) == "group\npasswd\n"
    assert printed(workshop, line + "; true") == "group\nnew\npasswd\n"


def test_locked_cache_has_one_user_at_a_time_and_private_one_each(workshop: Workshop) -> None:
    """Each step leaves a mark while it is there and looks for another's."""
    step = "RUN --mount=type=cache,id={i},target=/c,sharing={s} ls /c; touch /c/mark-{n}; sleep 0.3; rm /c/mark-{n}"
    for sharing in ("locked", "private"):
        stages = "".join(f"FROM busybox AS s{n}\n{step.format(i=sharing, s=sharing, n=n)}\n" for n in range(3))
        workshop.build(stages + "FROM busybox\n" + "".join(f"RUN --mount=from=s{n},target=/x true\n" for n in range(3)))
        assert output(workshop) == ""
    caches = workshop.root / "store/cache-mounts"
    assert sorted(len(list(home.glob("data-*"))) for home in caches.iterdir()) == [1, 3]


def test_shared_cache_has_several_users_at_once(workshop: Workshop) -> None:
    step = "RUN --mount=type=cache,id=k,target=/c touch /c/{0}; for i in $(seq 200); do [ -e /c/{1} ] && exit 0; sleep 0.05; done; exit 1"
    text = f"FROM busybox AS a\n{step.format('a', 'b')}\nFROM busybox\n{step.format('b', 'a')}\nRUN --mount=from=a,target=/x true\n"
    workshop.build(text)


def test_a_waiting_lock_does_not_outlive_the_build(workshop: Workshop) -> None:
    held, seen = threading.Event(), threading.Event()
    caches = CacheMounts(workshop.store.root, lambda attempt: None if attempt() else pytest.fail("nobody else has it"))

    def fail(event: object) -> None:
        if isinstance(event, StepOutput):
            seen.set()

    text = "FROM busybox AS a\nRUN --mount=type=cache,id=k,target=/c,sharing=locked true\nFROM busybox\nRUN echo no; exit 3\n"
    text += "RUN --mount=from=a,target=/x true\n"
    with caches.hold(("k", "", "/"), "locked", (0, 0), 0o755):
        held.set()
        with pytest.raises(StepFailed, match="exit code 3"):
            Builder(workshop.store, workshop.runtime, fail).build(BuildRequest(dockerfile=text, now=NOW))
    assert seen.is_set()


# tmpfs


def test_tmpfs_is_empty_of_its_size_and_gone(workshop: Workshop) -> None:
    image = workshop.build(
        "FROM busybox\nRUN --mount=type=tmpfs,target=/etc,size=1m ls /etc | grep passwd; df -k /etc | tail -1; touch /etc/x\n"
    )
    assert output(workshop).split()[1] == "1024"
    assert len(image.diff_ids) == 1


# secret


SECRET = "s3cr3t-" + "x" * 20
WITH_SECRET = Settings(secrets={"token": SECRET.encode()})


def everything_below(root: Path) -> Iterator[tuple[Path, bytes]]:
    for path in root.rglob("*"):
        if stat.S_ISREG(path.lstat().st_mode):
            yield path, path.read_bytes()


def test_secret_reaches_the_step_and_nothing_else(workshop: Workshop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    line = "RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN wc -c < /run/secrets/token; echo ${#TOKEN}; mount"
    image = workshop.build(f"FROM busybox\n{line}\nRUN ls /run /run/secrets 2>&1; echo $TOKEN\n", settings=WITH_SECRET, tags=("app",))
    shown = output(workshop)
    assert shown.startswith(f"{len(SECRET)}\n{len(SECRET)}\n")
    assert shown.endswith("ls: /run: No such file or directory\nls: /run/secrets: No such file or directory\n\n")
    assert len(image.diff_ids) == 1
    with pytest.raises(StepFailed) as caught:
        workshop.build(f"FROM busybox\n{line}; exit 1\n", settings=WITH_SECRET)
    told = repr(workshop.events) + repr(caught.value.__dict__) + caplog.text + image.config.raw.decode()
    assert SECRET not in told
    assert [path for path, data in everything_below(workshop.root) if SECRET.encode() in data] == []


def test_the_search_for_the_secret_would_find_it(workshop: Workshop) -> None:
    """The oracle: a step that does write it down is noticed."""
    workshop.build("FROM busybox\nRUN --mount=type=secret,id=token cat /run/secrets/token > /leak\n", settings=WITH_SECRET)
    assert [path.name for path, data in everything_below(workshop.root) if SECRET.encode() in data] == ["leak"]


def test_secret_does_not_count_for_the_cache(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN --mount=type=secret,id=token cat /run/secrets/token\n"
    workshop.build(text, settings=Settings(secrets={"token": b"one"}))
    workshop.build(text, settings=Settings(secrets={"token": b"two"}))
    assert workshop.cached() == [True]


def test_secret_is_a_file_of_mode_and_owner_and_any_bytes(workshop: Workshop) -> None:
    line = "RUN --mount=type=secret,id=t,target=/s,mode=0440,uid=1000,gid=1001 stat -c '%a %u:%g' /s; od -An -tx1 /s; ! echo x > /s"
    assert printed(workshop, line, settings=Settings(secrets={"t": b"\xff\x00\n"})) == "440 1000:1001\n ff 00 0a\n"


def test_secret_that_nobody_gave(workshop: Workshop) -> None:
    assert printed(workshop, "RUN --mount=type=secret,id=t ls /run 2>&1 || true") == "ls: /run: No such file or directory\n"
    with pytest.raises(StepFailed, match="secret t: not given") as caught:
        printed(workshop, "RUN --mount=type=secret,id=t,required cat /run/secrets/t")
    assert "--secret id=t,src=FILE" in (caught.value.hint or "")


# ssh


def ssh_add(root: Path) -> None:
    """The host's ssh-add with its libraries, in an image's root."""
    program = shutil.which("ssh-add")
    assert program is not None
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in [program, *(word for word in listed.split() if word.startswith("/"))]:
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


@requires("tool:ssh-agent", "tool:ssh-add", "tool:ssh-keygen", "tool:ldd")
@pytest.mark.parametrize("how", ["key file", "socket"])
def test_ssh_agent_is_reached_from_the_container(workshop: Workshop, tmp_path: Path, how: str) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "of-the-test", "-f", key], check=True)
    workshop.base("ssh", {"etc/passwd": PASSWD, "tmp/": ""}, fill=lambda root: (fill_busybox(root), ssh_add(root)))
    program = shutil.which("ssh-add")
    text = f"FROM ssh\nRUN --mount=type=ssh {program} -l 2>&1; ls -ln $SSH_AUTH_SOCK\n"
    with open_agents({"default": (str(key),)}) as agents:
        image = workshop.build(text, settings=Settings(ssh={"default": (str(key) if how == "key file" else agents["default"],)}))
    assert "of-the-test (ED25519)" in output(workshop)
    assert output(workshop).splitlines()[-1].startswith("srw-------    1 0        0")
    assert len(image.diff_ids) == 1
    assert subprocess.run(["pgrep", "-f", "ssh-agent -D -a /tmp/sandbox-agent-"], capture_output=True, check=False).stdout == b""
    secret = key.read_bytes().splitlines()[2]
    assert [path for path, data in everything_below(workshop.store.root) if secret in data] == []


def test_ssh_that_nobody_gave(workshop: Workshop) -> None:
    assert printed(workshop, "RUN --mount=type=ssh echo [$SSH_AUTH_SOCK]") == "[]\n"
    with pytest.raises(StepFailed, match="ssh agent default: not given"):
        printed(workshop, "RUN --mount=type=ssh,required true")


# traces, security, limits


@pytest.mark.parametrize(
    "mounts",
    [
        "--mount=type=cache,target=/root/.cache/deep/er",
        "--mount=type=tmpfs,target=/var/lib/new/place",
        "--mount=type=secret,id=t,target=/root/.netrc",
        "--mount=type=bind,target=/etc/sub/dir",
        "--mount=type=cache,target=/bin/sub",
    ],
)
def test_mount_points_leave_no_trace(workshop: Workshop, mounts: str) -> None:
    workshop.file("f", "x")
    base = workshop.build("FROM busybox\nRUN mkdir -p /var/lib\n")
    image = workshop.build(f"FROM busybox\nRUN mkdir -p /var/lib\nRUN {mounts} true\n", settings=Settings(secrets={"t": b"x"}))
    assert image.diff_ids == base.diff_ids


def test_a_directory_the_step_changed_stays_although_something_was_mounted_in_it(workshop: Workshop) -> None:
    image = workshop.build(
        "FROM busybox\nRUN --mount=type=cache,target=/root/.cache chmod 700 /root; mkdir /root/.cache2\n"
        "RUN --mount=type=cache,target=/tmp/x chmod 755 /tmp\n"
    )
    tree = workshop.tree(image)
    assert [entry.name for entry in tree.scandir("/root")] == [".cache2"]
    assert stat.S_IMODE(tree.stat("/root").stat.st_mode) == 0o700
    assert stat.S_IMODE(tree.stat("/tmp").stat.st_mode) == 0o755


def test_insecure_must_be_allowed_and_then_has_all_capabilities(workshop: Workshop) -> None:
    text = "FROM busybox\nRUN grep CapEff /proc/self/status\nRUN --security=insecure grep CapEff /proc/self/status\n"
    with pytest.raises(DockerfileError, match="insecure is not allowed"):
        workshop.build(text)
    workshop.build(text, settings=Settings(limits=StepLimits(insecure=True)), no_cache=True)
    usual, insecure = (int(word, 16) for word in output(workshop).split() if word != "CapEff:")
    assert usual & ~insecure == 0
    assert insecure & 1 << 21  # CAP_SYS_ADMIN
    assert not usual & 1 << 21


def test_limits_reach_every_run(workshop: Workshop) -> None:
    limits = StepLimits(hosts=(("db", "10.1.2.3"),), shm_size=3 << 20, ulimits=(("nofile", 99, 99),), limits=Limits(pids=20))
    shown = printed(
        workshop,
        "RUN grep db /etc/hosts; df -k /dev/shm | tail -1; ulimit -n; (for i in $(seq 40); do sleep 1 & done) 2>&1 | head -c 20",
        settings=Settings(limits=limits),
    )
    assert "10.1.2.3\tdb\n" in shown
    assert " 3072 " in shown
    assert "\n99\n" in shown
    assert "can't fork" in shown
    printed(workshop, "RUN true", settings=Settings(limits=limits))
    printed(workshop, "RUN true", settings=Settings(limits=StepLimits()))
    assert workshop.cached() == [False]


# named contexts


def test_named_contexts_serve_from_copy_and_mount(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/f").write_text("named\n")
    text = "FROM busybox AS b\nCOPY --from=data sub/f /copied\nRUN --mount=from=data,target=/d cat /d/sub/f /copied\n"
    text += "FROM data\nCOPY --from=b /copied /c\n"
    image = workshop.build(text, settings=Settings(contexts={"data": str(tmp_path / "data")}))
    assert output(workshop) == "named\nnamed\n"
    tree = workshop.tree(image)
    assert (tree.read("/sub/f"), tree.read("/c")) == (b"named\n", b"named\n")
    workshop.build(text, settings=Settings(contexts={"data": str(tmp_path / "data")}))
    assert all(workshop.cached())
    (tmp_path / "data/sub/f").write_text("changed\n")
    workshop.build(text, settings=Settings(contexts={"data": str(tmp_path / "data")}))
    assert not any(workshop.cached())
