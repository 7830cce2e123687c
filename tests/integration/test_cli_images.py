"""Images for real: import, build, images, tag, rmi, history, inspect, save, load, prune, and what a failed build says."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine
from tests.support.host import requires

pytestmark = [requires("userns", "overlay"), pytest.mark.anybody]
IMAGE_KEYS = {
    "Containers", "CreatedAt", "CreatedSince", "Digest", "ID", "Repository", "SharedSize", "Size", "Tag", "UniqueSize",
}  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> Path:
    place = tmp_path / "context"
    place.mkdir()
    (place / "file").write_text("content\n")
    (place / "Dockerfile").write_text(
        'FROM busybox\nCOPY file /file\nRUN echo making; echo noise >&2; wc -l < /file > /lines\nCMD ["cat", "/lines"]\n'
    )
    return place


def test_import_prints_the_id_and_takes_changes(sandbox: CommandLine, busybox_tar: Path) -> None:
    identifier = sandbox.ok("import", "-c", "ENV A=1", "-c", 'CMD ["env"]', str(busybox_tar), "other:2").out.strip()
    assert re.fullmatch("sha256:[0-9a-f]{64}", identifier)
    assert "A=1" in sandbox.ok("run", "--rm", "other:2").lines
    piped = sandbox.ok("import", "-", "piped", stdin=busybox_tar.read_bytes()).out.strip()
    assert sandbox.ok("images", "-q", "--no-trunc", "piped").lines == [piped]


def test_images_in_dockers_columns_json_and_templates(sandbox: CommandLine) -> None:
    head, row = sandbox.ok("images").lines
    assert head.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert row.startswith("busybox      latest    ")
    facts = sandbox.json("images", "--format", "json")
    assert set(facts) == IMAGE_KEYS
    assert (facts["Repository"], facts["Tag"]) == ("busybox", "latest")
    assert sandbox.ok("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").out == "busybox:latest\n"
    assert "DIGEST" in sandbox.ok("images", "--digests").lines[0]


def test_images_filters(sandbox: CommandLine, context: Path) -> None:
    sandbox.ok("build", "-q", "-t", "localhost/app:1", "--label", "team=a", str(context))
    sandbox.ok("build", "-q", "--label", "x=y", str(context))

    def names(*words: str) -> set[str]:
        return set(sandbox.ok("images", "--format", "{{.Repository}}:{{.Tag}}", *words).lines)

    assert names() == {"busybox:latest", "localhost/app:1", "<none>:<none>"}
    assert names("busybox") == {"busybox:latest"}
    assert names("localhost/*") == {"localhost/app:1"}
    assert names("busybox:nope") == set()
    assert names("-f", "dangling=true") == {"<none>:<none>"}
    assert names("-f", "label=team=a") == {"localhost/app:1"}
    assert names("-f", "since=busybox") == {"localhost/app:1", "<none>:<none>"}
    assert sandbox("images", "-f", "dangling=perhaps").status == 1


def test_tag_and_rmi_take_names_and_then_the_image(sandbox: CommandLine) -> None:
    sandbox.ok("tag", "busybox", "x/y:z")
    assert sandbox.ok("rmi", "x/y:z").out == "Untagged: x/y:z\n"
    done = sandbox("rmi", "x/y:z", "busybox")
    assert done.status == 1
    assert done.lines[0] == "Untagged: busybox:latest"
    assert done.lines[1].startswith("Deleted: sha256:")
    assert sandbox.ok("images", "-q").out == ""


def test_rmi_refuses_what_a_container_uses(sandbox: CommandLine) -> None:
    sandbox.ok("create", "--name", "user", "busybox", "true")
    done = sandbox("rmi", "busybox")
    assert done.status == 1
    assert "container user" in done.err


def test_a_name_that_is_close_is_suggested(sandbox: CommandLine) -> None:
    done = sandbox("run", "--rm", "busybx", "true")
    assert done.status == 125
    assert done.err.startswith("sandbox: busybx: no such image\nhint: did you mean busybox")


# build ----------------------------------------------------------------------------------------------------------------


def test_build_then_cached_in_plain_progress(sandbox: CommandLine, context: Path) -> None:
    first = sandbox.ok("build", "-t", "app", "--progress", "plain", str(context))
    assert first.out == ""
    assert "#3 [3/4] RUN echo making" in first.err
    assert re.search(r"^#3 \d+\.\d{3} making$", first.err, re.MULTILINE)
    assert re.search(r"^#3 \d+\.\d{3} noise$", first.err, re.MULTILINE)
    assert re.search(r"^#3 DONE \d+\.\ds$", first.err, re.MULTILINE)
    again = sandbox.ok("build", "-t", "app", str(context))
    assert "#2 CACHED" in again.err
    assert "#3 CACHED" in again.err
    assert "making" not in again.err.replace("echo making", "")
    assert sandbox.ok("run", "--rm", "app").out == "1\n"


def test_quiet_prints_the_id_and_nothing_else(sandbox: CommandLine, context: Path, tmp_path: Path) -> None:
    done = sandbox.ok("build", "-q", "-t", "app", "--iidfile", str(tmp_path / "id"), str(context))
    assert done.err == ""
    assert re.fullmatch("sha256:[0-9a-f]{64}\n", done.out)
    assert (tmp_path / "id").read_text() == done.out.strip()


def test_build_reads_stdin_with_and_without_a_context(sandbox: CommandLine, context: Path) -> None:
    sandbox.ok("build", "-t", "with", "-f", "-", str(context), stdin=b"FROM busybox\nCOPY file /here\n")
    assert sandbox.ok("run", "--rm", "with", "cat", "/here").out == "content\n"
    sandbox.ok("build", "-t", "without", "-", stdin=b"FROM busybox\nRUN echo no files > /here\n")
    assert sandbox.ok("run", "--rm", "without", "cat", "/here").out == "no files\n"
    done = sandbox("build", "-", stdin=b"FROM busybox\nCOPY file /here\n")
    assert done.status == 1
    assert "file" in done.err


def test_build_arguments_target_and_labels(sandbox: CommandLine, context: Path) -> None:
    text = "FROM busybox AS one\nARG A\nARG B\nRUN echo $A $B > /args\nFROM one AS two\nRUN false\n"
    (context / "Other").write_text(text)
    words = ["-f", str(context / "Other"), "--build-arg", "A=1", "--build-arg", "B", "--target", "one", "--label", "k=v", "-t", "one"]
    sandbox.ok("build", *words, str(context), env={"B": "outside"})
    assert sandbox.ok("run", "--rm", "one", "cat", "/args").out == "1 outside\n"
    assert sandbox.ok("inspect", "-f", '{{index .Config.Labels "k"}}', "one").out == "v\n"


def test_a_failed_step_shows_line_step_and_last_output(sandbox: CommandLine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCOPY file /\nRUN echo trying; echo went wrong >&2; exit 3\nCMD x\n")
    done = sandbox("build", "-t", "app", str(context))
    assert done.status == 1
    report = done.err[done.err.index("BuildError: ") :].splitlines()
    assert report[0] == "BuildError: RUN echo trying; echo went wrong >&2; exit 3: exit code 3"
    assert re.fullmatch(r"  Dockerfile line 3 of 4 \| step 3/4 \| stage 0 \| after \d+\.\d s", report[1])
    assert [line.split("|")[0].strip() for line in report[2:5]] == ["2", "> 3", "4"]
    assert report[5] == "  last output:"
    assert set(report[6:8]) == {"    trying", "    went wrong"}


def test_a_malformed_dockerfile_shows_the_line_and_a_caret(sandbox: CommandLine, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nCPOY file /\n")
    done = sandbox("build", str(context))
    assert done.status == 1
    assert done.err.startswith("sandbox: ")
    assert re.search(r"^ *> +2 \| CPOY file /$", done.err, re.MULTILINE)
    assert "^" in done.err
    assert "COPY" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nope"], "not a directory"), (["-f", "nope", "."], "nope: no such file"), (["-t", "UPPER", "-"], "UPPER")],
)
def test_build_says_what_is_wrong(sandbox: CommandLine, words: list[str], message: str) -> None:
    done = sandbox("build", *words, stdin=b"FROM scratch\n")
    assert done.status == 1
    assert message in done.err


def test_a_live_build_collapses_on_a_terminal(sandbox: CommandLine, context: Path) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(sandbox.argv("build", "-t", "app", str(context)), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # EIO: the command has ended
            break
        shown += piece
    os.close(master)
    assert process.wait() == 0
    text = shown.decode()
    assert text.count("✓") >= 4
    assert "built " in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


# the rest -------------------------------------------------------------------------------------------------------------


def test_history_lists_instructions_newest_first(sandbox: CommandLine, context: Path) -> None:
    sandbox.ok("build", "-q", "-t", "app", str(context))
    head, *rows = sandbox.ok("history", "app").lines
    assert head.split() == ["IMAGE", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert 'CMD ["cat" "/lines"]' in rows[0]
    assert "COPY file /file" in rows[2]
    assert rows[1].startswith("<missing>")
    assert "…" in sandbox.ok("history", "app").out
    assert "…" not in sandbox.ok("history", "--no-trunc", "app").out


def test_inspect_tells_images_and_containers_apart(sandbox: CommandLine) -> None:
    sandbox.ok("create", "--name", "busybox", "busybox", "true")
    assert "State" in sandbox.json("inspect", "busybox")[0]
    assert "RootFS" in sandbox.json("inspect", "--type", "image", "busybox")[0]
    assert "RootFS" in sandbox.json("image", "inspect", "busybox")[0]
    done = sandbox("image", "inspect", "nope")
    assert (done.status, done.out) == (1, "[]\n")


@pytest.mark.parametrize("kind", ["docker", "oci"])
def test_saved_images_come_back_the_same(sandbox: CommandLine, context: Path, tmp_path: Path, kind: str) -> None:
    sandbox.ok("build", "-q", "-t", "app:1", str(context))
    before = sandbox.ok("images", "-q", "--no-trunc", "app").out
    sandbox.ok("save", "--format", kind, "-o", str(tmp_path / "app.tar"), "app:1")
    sandbox.ok("rmi", "app:1")
    assert sandbox.ok("load", "-i", str(tmp_path / "app.tar")).out.startswith("Loaded image: ")
    assert sandbox.ok("images", "-q", "--no-trunc", "app").out == before
    assert sandbox.ok("run", "--rm", "app:1").out == "1\n"


def test_save_and_load_through_a_pipe(sandbox: CommandLine) -> None:
    packed = subprocess.run(sandbox.argv("save", "busybox"), capture_output=True, check=True).stdout
    other = CommandLine(sandbox.root.with_name("other"))
    assert other.ok("load", stdin=packed).out == "Loaded image: busybox:latest\n"
    assert other.ok("run", "--rm", "busybox", "echo", "there").out == "there\n"


def test_archives_that_are_none_are_errors(sandbox: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar")
    bad, none = str(tmp_path / "x.tar"), str(tmp_path / "none")
    for words in (["load", "-i", bad], ["load", "-i", none], ["import", bad, "y"], ["import", none, "y"], ["save", "nope"]):
        done = sandbox(*words)
        assert done.status == 1, words
        assert done.err.startswith("sandbox: "), words
        assert "Traceback" not in done.err


def test_image_prune_takes_dangling_images_and_with_a_the_unused(sandbox: CommandLine, context: Path) -> None:
    sandbox.ok("build", "-q", str(context))
    sandbox.ok("create", "--name", "user", "busybox", "true")
    sandbox.ok("tag", "busybox", "again")
    sandbox.ok("build", "-q", "-t", "unused", str(context))
    assert "Deleted Images:" not in sandbox.ok("image", "prune", "-f").out
    sandbox.ok("build", "-q", "-t", "unused", "-", stdin=b"FROM busybox\nENV A=1\n")
    assert "Deleted Images:" in sandbox.ok("image", "prune", "-f").out
    assert "Deleted Images:" in sandbox.ok("image", "prune", "-af").out
    assert set(sandbox.ok("images", "--format", "{{.Repository}}").lines) == {"busybox", "again"}


def test_capture_makes_this_python_an_image(sandbox: CommandLine) -> None:
    identifier = sandbox.ok("capture", "-t", "localhost/python").out.strip()
    assert sandbox.ok("images", "-q", "--no-trunc", "localhost/python").lines == [identifier]
    assert sandbox.ok("run", "--rm", "localhost/python", "python3", "-c", "print(6 * 7)").out == "42\n"
