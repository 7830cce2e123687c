"""Heredocs as BuildKit's own tests have them (frontend/dockerfile/dockerfile_heredoc_test.go), with a real shell and real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.runtime.container import Runtime
from tests.support.building import GROUP, PASSWD, Workshop, fill_busybox
from tests.support.host import requires

pytestmark = [requires("overlay", "userns", "tool:busybox"), pytest.mark.anybody]

COMPLEX = """\
WORKDIR /dest
RUN cat <<EOF1 | tr '[:upper:]' '[:lower:]' > ./out1; \\
	cat <<EOF2 | tr '[:lower:]' '[:upper:]' > ./out2
hello WORLD
EOF1
HELLO world
EOF2
RUN <<EOF 3<<IN1 4<<IN2 awk -f -
BEGIN {
	while ((getline line < "/proc/self/fd/3") > 0)
		print tolower(line) > "./fd3"
	while ((getline line < "/proc/self/fd/4") > 0)
		print toupper(line) > "./fd4"
}
EOF
hello WORLD
IN1
HELLO world
IN2
"""
INDENT = """\
COPY <<EOF /dest/foo-copy
	foo
EOF
COPY <<-EOF /dest/bar-copy
	bar
EOF
RUN <<EOF
echo "
	foo" > /dest/foo-run
EOF
RUN <<-EOF
echo "
	bar" > /dest/bar-run
EOF
RUN <<EOF
#!/bin/sh
echo "
	foo" > /dest/foo2-run
EOF
RUN <<-EOF
#!/bin/sh
echo "
	bar" > /dest/bar2-run
EOF
RUN <<EOF sh > /dest/foo3-run
echo "
	foo"
EOF
RUN <<-EOF sh > /dest/bar3-run
echo "
	bar"
EOF
"""
SUBSTITUTION = """\
ARG name=world
COPY <<EOF /dest/c1
Hello ${name}!
EOF
COPY <<'EOF' /dest/c2
Hello ${name}!
EOF
COPY <<EOF /dest/q1
Hello '${name}' "${name}"!
EOF
COPY <<"EOF" /dest/q2
Hello '${name}' "${name}"!
EOF
RUN <<EOF
greeting="Hello"
echo "${greeting} ${name}!" > /dest/r1
EOF
RUN <<EOF
name="new world"
echo "Hello ${name}!" > /dest/r2
EOF
"""
SYMBOLS = """\
COPY <<EOF /dest/quotefile
"quotes in file"
EOF
COPY <<EOF /dest/slash1
\\
EOF
COPY <<EOF /dest/slash2
\\\\
EOF
COPY <<EOF /dest/slash3
\\$
EOF
COPY <<"EOF" /dest/raw1
\\
EOF
COPY <<"EOF" /dest/raw3
\\$
EOF
"""
FILES = """\
WORKDIR /dest
COPY <<EOF single
single file
EOF
COPY <<EOF <<EOF2 double/
first file
EOF
second file
EOF2
COPY --chmod=777 <<EOF /p/all
x
EOF
ADD --chmod=0644 --chown=app:app <<EOF /p/owned
x
EOF
RUN stat -c "%a %u:%g" /p/all /p/owned > perms
"""
AWK = """\
SHELL ["/bin/awk"]
RUN <<EOF
BEGIN {
	print "foo" > "/dest/fake"
}
EOF
RUN <<EOF
#!/bin/awk -f
BEGIN {
	print "hello" > "/dest/shebang"
}
EOF
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    runtime = Runtime(tmp_path / "store")
    made = Workshop(tmp_path, runtime)
    made.base("busybox", {"etc/passwd": PASSWD, "etc/group": GROUP, "dest/": ""}, fill=fill_busybox)
    yield made
    runtime.close()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (COMPLEX, {"out1": "hello world\n", "out2": "HELLO WORLD\n", "fd3": "hello world\n", "fd4": "HELLO WORLD\n"}),
        (
            INDENT,
            {"foo-copy": "\tfoo\n", "bar-copy": "bar\n"}
            | {f"foo{n}-run": "\n\tfoo\n" for n in ("", 2, 3)}
            | {f"bar{n}-run": "\nbar\n" for n in ("", 2, 3)},
        ),
        (
            SUBSTITUTION,
            {
                "c1": "Hello world!\n",
                "c2": "Hello ${name}!\n",
                "q1": "Hello 'world' \"world\"!\n",
                "q2": "Hello '${name}' \"${name}\"!\n",
                "r1": "Hello world!\n",
                "r2": "Hello new world!\n",
            },
        ),
        (SYMBOLS, {"quotefile": '"quotes in file"\n', "slash1": "\n", "slash2": "\\\n", "slash3": "$\n", "raw1": "\\\n", "raw3": "\\$\n"}),
        (
            FILES,
            {"single": "single file\n", "double/EOF": "first file\n", "double/EOF2": "second file\n"}
            | {"perms": "777 0:0\n644 1000:1001\n"},
        ),
        (AWK, {"fake": "foo\n", "shebang": "hello\n"}),
    ],
    ids=["complex", "indent", "substitution", "symbols", "files", "awk"],
)
def test_heredocs_leave_these_files(workshop: Workshop, lines: str, expected: dict[str, str]) -> None:
    tree = workshop.tree(workshop.build("FROM busybox\n" + lines))
    assert {name: tree.read(f"/dest/{name}").decode() for name in expected} == expected


def test_a_heredoc_in_onbuild_runs_in_the_child(workshop: Workshop) -> None:
    workshop.build('FROM busybox\nONBUILD RUN <<EOF\necho "hello world" >> /dest/x\nEOF\n', tags=("parent",))
    assert workshop.tree(workshop.build("FROM parent\n")).read("/dest/x") == b"hello world\n"


def test_a_copied_heredoc_escapes_with_a_backslash_whatever_the_file_does(workshop: Workshop) -> None:
    tree = workshop.tree(workshop.build("# escape=`\nFROM busybox\nCOPY <<EOF /dest/x\n\\$ `$PATH\nEOF\n"))
    assert tree.read("/dest/x") == b"$ `/bin\n"
