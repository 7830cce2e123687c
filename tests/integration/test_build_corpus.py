"""Projects as people have them, built by `sandbox build` with real packages: what their images do, and that nothing is done twice."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.engine import Engine
from tests.support import debian
from tests.support.command_line import CommandLine
from tests.support.host import requires
from tests.support.image_verify import verify_store

pytestmark = [requires("root", "tool:mmdebstrap", "tool:npm"), pytest.mark.xdist_group("debian"), pytest.mark.timeout(400)]

CORPUS = Path(__file__).parents[1] / "corpus"
AUTHORITIES = "id=ca,src=/etc/ssl/certs/ca-certificates.crt"
"""A host behind a proxy has its certificate authority in there."""


class Projects:
    """The corpus beside an engine that has its bases."""

    def __init__(self, root: Path, directory: Path) -> None:
        self.sandbox = CommandLine(root, patience=300)
        self.directory = directory

    def context(self, name: str) -> Path:
        """A copy of a project of its own."""
        context = self.directory / name
        if not context.exists():
            shutil.copytree(CORPUS / name, context)
        return context

    def build(self, name: str, *flags: str) -> list[bool]:
        """Build it as an image of its name; of each step whether it was remembered."""
        done = self.sandbox.ok("build", "--progress", "plain", "-t", name, *flags, str(self.context(name)))
        ends = [line.split() for line in done.err.splitlines() if line.startswith("#")]
        return [words[1] == "CACHED" for words in ends if words[1:2] in (["CACHED"], ["DONE"])]

    def run(self, name: str, *argv: str, flags: tuple[str, ...] = (), stdin: bytes = b"") -> str:
        """What its program prints."""
        return self.sandbox.ok("run", "--rm", "-i", *flags, name, *argv, stdin=stdin).out

    def config(self, name: str) -> dict[str, object]:
        """The Config of `inspect`."""
        return dict(self.sandbox.json("inspect", name)[0]["Config"])

    def image_id(self, name: str) -> str:
        """Its digest."""
        return str(self.sandbox.json("inspect", name)[0]["Id"])

    def files(self, name: str) -> list[str]:
        """The paths of all its layers together."""
        archive = self.directory / f"{name}.tar"
        self.sandbox.ok("save", "--format", "oci", "-o", str(archive), name)
        found: set[str] = set()
        with tarfile.open(archive) as outer:
            names = {member.name for member in outer}
            manifest = json.load(outer.extractfile("index.json"))["manifests"][0]["digest"]  # type: ignore[arg-type]
            layers = json.load(outer.extractfile(f"blobs/sha256/{manifest[7:]}"))["layers"]  # type: ignore[arg-type]
            for layer in layers:
                assert f"blobs/sha256/{layer['digest'][7:]}" in names
                with tarfile.open(fileobj=outer.extractfile(f"blobs/sha256/{layer['digest'][7:]}")) as inner:
                    found |= {member.name for member in inner if not member.isdir()}
        return sorted(found)


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory, python_tar: Path, debian_tar: Path) -> Iterator[Projects]:
    scratch = tmp_path_factory.mktemp("corpus")
    with Engine(scratch / "engine") as engine:
        engine.load(python_tar)
        engine.import_image(debian_tar, debian.IMAGE, changes=[debian.PATH])
        yield Projects(scratch / "engine", scratch)
        assert engine.containers(all=True) == []
    verify_store(scratch / "engine")


def test_python_service(projects: Projects) -> None:
    flags = ("--secret", AUTHORITIES, "--build-arg", "VERSION=1.2")
    assert not all(projects.build("python", *flags))
    assert projects.run("python") == "Hello, world! 1.2 999 /srv\n"
    assert projects.run("python", "--name", "<ü>") == "Hello, &lt;ü&gt;! 1.2 999 /srv\n"
    config = projects.config("python")
    assert (config["User"], config["StopSignal"], config["ExposedPorts"]) == ("shop:shop", "SIGINT", {"8000/tcp": {}})
    assert config["Healthcheck"]["Test"] == ["CMD", "python3", "-c", "import shop"]  # type: ignore[index]
    assert all(projects.build("python", *flags))
    script = "ls / /srv; command -v pip; command -v gcc; cat /run/ca.crt 2>&1; true"
    shipped = projects.run("python", "-c", script, flags=("--entrypoint", "sh"))
    assert "tests-passed" in shipped
    assert "BEGIN CERTIFICATE" not in shipped


def test_python_service_with_a_failing_test_is_no_image(projects: Projects) -> None:
    source = projects.context("python") / "src/shop/__init__.py"
    kept = source.read_text()
    try:
        source.write_text(kept.replace("Hello", "Goodbye"))
        done = projects.sandbox("build", "-t", "broken", "--secret", AUTHORITIES, str(projects.context("python")))
    finally:
        source.write_text(kept)
    assert done.status == 1
    assert "python3 -m unittest discover" in done.err
    assert "'Goodbye, &lt;b&gt;!' != 'Hello, &lt;b&gt;!'" in done.err
    assert projects.sandbox("inspect", "broken").status == 1


def test_node_bundle(projects: Projects) -> None:
    npm = Path(shutil.which("npm") or "npm").resolve().parents[1]
    flags = ("--build-context", f"npm={npm}", "--secret", AUTHORITIES)
    projects.build("node", *flags, "--build-arg", "BUILD_NUMBER=7")
    assert projects.run("node") == "7 172800000 production 1000\n"
    files = projects.files("node")
    assert "app/node_modules/ms/index.js" in files
    assert not [path for path in files if "left-pad" in path or path.startswith("opt/npm/") or path == "app/src/index.js"]
    again = projects.build("node", *flags, "--build-arg", "BUILD_NUMBER=8")  # the dependencies do not know of it
    assert (again.count(False), projects.run("node")) == (7, "8 172800000 production 1000\n")


def test_c_command(projects: Projects) -> None:
    projects.build("c")
    assert projects.run("c", stdin=b"a b\nc") == "1 lines, 3 words\n"
    assert projects.files("c") == ["checked", "count"]
    first = projects.image_id("c")
    assert all(projects.build("c"))
    projects.build("c", "--no-cache-filter", "build,check")  # compiled and linked again
    assert projects.image_id("c") == first


def test_go_service(projects: Projects) -> None:
    projects.build("go", "--build-arg", "VERSION=v1.4")
    assert projects.run("go") == "hello, gopher 1.4 65534\n"
    assert projects.files("go") == ["etc/passwd", "hello"]
    unit = ("build", "--target", "unit", str(projects.context("go")))
    projects.sandbox.ok(*unit)
    test = projects.context("go") / "cmd/hello/main_test.go"
    test.write_text(test.read_text().replace("hello, x", "hi, x"))
    assert all(projects.build("go", "--build-arg", "VERSION=v1.4"))  # the release has no tests in it
    done = projects.sandbox(*unit)
    assert (done.status, "main_test.go:7: hello, x" in done.err) == (1, True)


def test_course_on_this_machines_python(projects: Projects) -> None:
    context = projects.context("notebook")
    (context / "rows.csv").write_text("a\nb\nc\n")
    with tarfile.open(context / "data.tar.gz", "w:gz") as archive:
        archive.add(context / "rows.csv", "rows.csv")
    projects.build("notebook")
    assert projects.run("notebook") == "3 &lt; True\n"
    assert not [path for path in projects.files("notebook") if path.startswith("wheels/") or path.endswith(".tar.gz")]
    assert all(projects.build("notebook"))
