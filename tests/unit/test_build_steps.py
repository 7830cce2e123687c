"""What each instruction makes of the image's config and history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from sandbox.build.accounts import home_of, resolve_owner
from sandbox.errors import BuildError, DockerfileError, StepFailed
from sandbox.oci import Healthcheck, ImageConfig, RunConfig
from tests.support.building import GROUP, PASSWD, Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    made = Workshop(tmp_path)
    made.base("base", {"etc/passwd": PASSWD, "etc/group": GROUP, "dir/file": "x"})
    return made


def config(workshop: Workshop, lines: str, build_args: Mapping[str, str] | None = None, head: str = "FROM base\n") -> ImageConfig:
    return workshop.build(head + lines, build_args=build_args).config.value


@pytest.mark.parametrize(
    ("lines", "field", "expected"),
    [
        ("ENV A=1 B=2\nENV PATH=/x:$PATH A=3", "env", ["PATH=/x:/bin", "A=3", "B=2"]),
        ("ENV A=1\nENV A=2 B=$A", "env", ["PATH=/bin", "A=2", "B=1"]),
        ("LABEL a=1 b=2\nLABEL a=3", "labels", {"a": "3", "b": "2"}),
        ("USER app:staff", "user", "app:staff"),
        ("WORKDIR /a\nWORKDIR b/../c", "working_dir", "/a/c"),
        ("WORKDIR //x//y/", "working_dir", "/x/y"),
        ("WORKDIR ../..", "working_dir", "/"),
        ("EXPOSE 80 53/UDP 7-8\nEXPOSE 80/tcp", "exposed_ports", {"80/tcp": {}, "53/udp": {}, "7/tcp": {}, "8/tcp": {}}),
        ('VOLUME /a\nVOLUME ["/b c"]', "volumes", {"/a": {}, "/b c": {}}),
        ("CMD echo $HOME", "cmd", ["/bin/sh", "-c", "echo $HOME"]),
        ('SHELL ["/bin/bash", "-ec"]\nCMD x', "cmd", ["/bin/bash", "-ec", "x"]),
        ('SHELL ["/bin/bash", "-ec"]', "shell", ["/bin/bash", "-ec"]),
        ('ENTRYPOINT ["a", "b"]', "entrypoint", ["a", "b"]),
        ("CMD []", "cmd", []),
        ("STOPSIGNAL SIGRTMIN+3", "stop_signal", "SIGRTMIN+3"),
        ("STOPSIGNAL 9", "stop_signal", "9"),
        ("HEALTHCHECK NONE", "healthcheck", Healthcheck(["NONE"])),
        ("HEALTHCHECK --interval=1m --retries=2 CMD x", "healthcheck", Healthcheck(["CMD-SHELL", "x"], interval=60 * 10**9, retries=2)),
        ('HEALTHCHECK CMD ["x"]', "healthcheck", Healthcheck(["CMD", "x"])),
        ("ONBUILD RUN a\nONBUILD COPY b c", "on_build", ["RUN a", "COPY b c"]),
        ("ARG A=1\nENV B=$A", "env", ["PATH=/bin", "B=1"]),
        ("ENV A=env\nARG A=arg\nENV B=$A", "env", ["PATH=/bin", "A=env", "B=arg"]),  # as BuildKit has it
        ("ENV A=env\nARG A\nENV B=$A", "env", ["PATH=/bin", "A=env", "B=env"]),
        ("ARG A=arg\nENV A=env\nENV B=$A", "env", ["PATH=/bin", "A=env", "B=env"]),
        ("ARG A=1\nARG A=2\nENV B=$A", "env", ["PATH=/bin", "B=2"]),
        ("ARG A\nENV B=${A:-none}", "env", ["PATH=/bin", "B=none"]),
        ("ENV B=${A:-none}\nARG A=late", "env", ["PATH=/bin", "B=none"]),
    ],
)
def test_instruction_sets_this(workshop: Workshop, lines: str, field: str, expected: object) -> None:
    assert getattr(config(workshop, lines).config, field) == expected


def test_maintainer_is_the_author(workshop: Workshop) -> None:
    assert config(workshop, "MAINTAINER Some One").author == "Some One"


def test_arg_leaves_nothing_in_the_config(workshop: Workshop) -> None:
    assert config(workshop, "ARG TOKEN=default", {"TOKEN": "s3cret"}).config.env == ["PATH=/bin"]


def test_global_arg_counts_in_a_stage_only_when_named_there(workshop: Workshop) -> None:
    head = "ARG A=global\nFROM base\n"
    assert config(workshop, "ENV B=$A", head=head).config.env == ["PATH=/bin", "B="]
    assert config(workshop, "ARG A\nENV B=$A", head=head).config.env == ["PATH=/bin", "B=global"]
    assert config(workshop, "ARG A\nENV B=$A", {"A": "given"}, head=head).config.env == ["PATH=/bin", "B=given"]
    assert config(workshop, "ARG A=own\nENV B=$A", head=head).config.env == ["PATH=/bin", "B=own"]


def test_arg_reaches_the_stages_based_on_its_own_and_no_other(workshop: Workshop) -> None:
    assert config(workshop, "FROM one\nENV B=$A", head="FROM base AS one\nARG A=1\n").config.env == ["PATH=/bin", "B=1"]
    assert config(workshop, "FROM base\nENV B=$A", head="FROM base AS one\nARG A=1\n").config.env == ["PATH=/bin", "B="]


def test_entrypoint_clears_an_inherited_cmd_but_not_its_own_stages(workshop: Workshop) -> None:
    workshop.base("withcmd", {"x": ""}, RunConfig(cmd=["inherited"]))
    assert config(workshop, 'ENTRYPOINT ["e"]', head="FROM withcmd\n").config.cmd is None
    assert config(workshop, 'CMD ["c"]\nENTRYPOINT ["e"]', head="FROM withcmd\n").config.cmd == ["c"]
    assert config(workshop, "ENV A=1", head="FROM withcmd\n").config.cmd == ["inherited"]


def test_scratch_has_a_path_and_a_working_directory(workshop: Workshop) -> None:
    found = config(workshop, "COPY <<EOF /x\nEOF", head="FROM scratch\n").config
    assert found.env == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    assert found.working_dir == "/"


@pytest.mark.parametrize(
    ("line", "created_by", "empty"),
    [
        ("ENV A=1 B='2 3'", "ENV A=1 B=2 3", True),
        ("ARG A=1 B", "ARG A=1 B", True),
        ("LABEL a=b", "LABEL a=b", True),
        ("WORKDIR /new", "WORKDIR /new", False),
        ("WORKDIR /dir", "WORKDIR /dir", True),
        ("COPY --chmod=600 a /x", "COPY --chmod=600 a /x", False),
        ("COPY <<EOF /x\nEOF", "COPY <<EOF /x", False),
        ("ADD a /x", "ADD a /x", False),
        ('CMD ["a", "b c"]', 'CMD ["a" "b c"]', True),
        ("ENTRYPOINT a", 'ENTRYPOINT ["/bin/sh" "-c" "a"]', True),
        ("EXPOSE 80 79/udp", "EXPOSE map[79/udp:{} 80/tcp:{}]", True),
        ("VOLUME /a /b", "VOLUME [/a /b]", True),
        ('SHELL ["/bin/bash", "-c"]', "SHELL [/bin/bash -c]", True),
        ("USER app", "USER app", True),
        ("STOPSIGNAL SIGINT", "STOPSIGNAL SIGINT", True),
        ("ONBUILD RUN x", "ONBUILD RUN x", True),
        ("MAINTAINER me", "MAINTAINER me", True),
        ("HEALTHCHECK --interval=90s --timeout=1500ms CMD x", 'HEALTHCHECK &{["CMD-SHELL" "x"] "1m30s" "1.5s" "0s" "0s" 0}', True),
    ],
)
def test_history_reads_as_dockers(workshop: Workshop, line: str, created_by: str, *, empty: bool) -> None:
    workshop.file("a", "A")
    _, entry = config(workshop, line).history  # the base tells of no step
    assert (entry.created_by, entry.empty_layer, entry.created) == (created_by, empty, "2026-01-02T03:04:05.000000Z")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("EXPOSE http", "EXPOSE http: expected port"),
        ("EXPOSE 0", "EXPOSE 0"),
        ("EXPOSE 90-80", "EXPOSE 90-80"),
        ("EXPOSE 70000/tcp", "EXPOSE 70000/tcp"),
        ("EXPOSE 80/http", "EXPOSE 80/http"),
        ("STOPSIGNAL SIGNOPE", "STOPSIGNAL SIGNOPE: not a signal"),
        ("STOPSIGNAL 65", "STOPSIGNAL 65"),
        ("STOPSIGNAL _DFL", "STOPSIGNAL _DFL"),
        ("WORKDIR $NOPE", "WORKDIR: expected a path"),
        ("USER $NOPE", "USER: expected a user"),
        ("VOLUME $NOPE", "VOLUME: expected a path"),
        ("ENV $NOPE=1", "ENV: expected a name"),
        ("COPY $NOPE /x", "COPY: expected a path"),
        ("COPY a b ${NOPE:-/file}", "COPY: expected a destination that ends with /"),
        ("COPY [z /x", "pattern"),
        ('ENV A="${B:?is needed}"', "B: is needed"),
        ("COPY https://example.com/x /x", "a remote source"),
        ("COPY git@example.com:x/y.git /x", "a remote source"),
        ("ADD --checksum=sha256:00 f /x", "--checksum: for a URL or a git repository only"),
        ("ADD --checksum=sha256:00 https://example.com/x f /x/", "--checksum: for one source only"),
        ("ADD https://example.com/ /x/", "no file name in it"),
        ("COPY --link --chown=app f /x", "--chown=app: not a number"),
        ("COPY --exclude=[ f /x", "--exclude"),
    ],
)
def test_value_that_cannot_be_meant_is_an_error_with_its_line(workshop: Workshop, lines: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        config(workshop, lines)
    assert str(caught.value).startswith("Dockerfile line 2: ")
    assert message in str(caught.value)
    assert "> 2 |" in caught.value.excerpt


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        ("COPY file.tx /x", "COPY file.tx /x: file.tx: not in the build context", "did you mean file.txt?"),
        ("COPY sub/fil /x", "sub/fil: not in the build context", "did you mean sub/file?"),
        ("COPY ../outside /x", "not in the build context", "paths are below the build context"),
        ("COPY ignored /x", "ignored: excluded by .dockerignore", ""),
        ("COPY --from=base /di /x", "/di: not found", "did you mean dir?"),
        ("COPY --chown=nobody file.txt /x", "user nobody: not in the image's /etc/passwd", ""),
        ("COPY --chown=app:nogroup file.txt /x", "group nogroup: not in the image's /etc/group", ""),
        ("COPY --chmod=rwx file.txt /x", "--chmod=rwx: not a mode", "write 644"),
        ("COPY file.txt /dir/file/x", "/dir/file: not a directory", ""),
        ("COPY loop /x", "too many levels of symbolic links", ""),
        ("USER nobody\nWORKDIR /new", "user nobody: not in the image's /etc/passwd", ""),
    ],
)
def test_step_that_fails_says_why(workshop: Workshop, lines: str, message: str, hint: str) -> None:
    workshop.file(".dockerignore", "ignored\n")
    workshop.file("ignored")
    workshop.file("file.txt")
    workshop.file("sub/file")
    (workshop.context / "loop").symlink_to("loop")
    with pytest.raises(StepFailed) as caught:
        config(workshop, lines)
    assert message in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert "> " in caught.value.excerpt


def test_a_wildcard_that_matches_nothing_is_a_warning(workshop: Workshop) -> None:
    found = config(workshop, "COPY nope* /x/")
    assert found.history[1].empty_layer
    assert [e.message for e in workshop.events if hasattr(e, "message")] == ["nope*: matches nothing, nothing is copied"]


def test_no_context_is_enough_for_heredocs_only(workshop: Workshop) -> None:
    image = workshop.build("FROM base\nCOPY <<EOF /x\nhello\nEOF\n", context=False)
    assert workshop.tree(image).read("/x") == b"hello\n"
    with pytest.raises(DockerfileError, match="no build context"):
        workshop.build("FROM base\nCOPY a /x", context=False)


def test_copy_from_heredocs(workshop: Workshop) -> None:
    image = workshop.build("FROM base\nENV A=1\nCOPY --chmod=750 <<one <<'two' /etc/conf/\n$A '$A'\none\n$A\ntwo\n")
    tree = workshop.tree(image)
    assert (tree.read("/etc/conf/one"), tree.read("/etc/conf/two")) == (b"1 '1'\n", b"$A\n")
    assert tree.stat("/etc/conf/one").stat.st_mode & 0o7777 == 0o750


def test_relative_destination_is_below_workdir(workshop: Workshop) -> None:
    workshop.file("a", "A")
    tree = workshop.tree(workshop.build("FROM base\nWORKDIR /app\nCOPY a .\nCOPY a sub/b\nCOPY a ../c\n"))
    assert [tree.read(path) for path in ("/app/a", "/app/sub/b", "/c")] == [b"A"] * 3


@pytest.mark.parametrize(
    ("owner", "ids"),
    [
        ("app", (1000, 1001)),
        ("0", (0, 0)),
        ("1000", (1000, 1000)),
        ("app:staff", (1000, 50)),
        ("5:6", (5, 6)),
        (":50", (0, 50)),
        ("7:app", (7, 1001)),
    ],
)
def test_owner_is_looked_up_in_the_image(workshop: Workshop, owner: str, ids: tuple[int, int]) -> None:
    assert resolve_owner(workshop.tree(workshop.store.find("base")), owner) == ids


@pytest.mark.parametrize("owner", ["broken", "nobody", "4294967295", "99999999999", "app:9999999999"])
def test_owner_that_is_none_is_an_error(workshop: Workshop, owner: str) -> None:
    with pytest.raises(BuildError):
        resolve_owner(workshop.tree(workshop.store.find("base")), owner)


@pytest.mark.parametrize(
    ("user", "home"), [("", "/root"), ("app", "/home/app"), ("1000", "/home/app"), ("app:staff", "/home/app"), ("77", "/")]
)
def test_home_is_the_images(workshop: Workshop, user: str, home: str) -> None:
    assert home_of(workshop.tree(workshop.store.find("base")), user) == home
