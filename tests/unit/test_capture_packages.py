"""Which distributions a capture takes, and which of their files."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from sandbox.errors import ImageError, InvalidInput
from sandbox.image.capture_packages import Environment, edit_script, plan_bundled_pip, plan_pip_scripts, update_records
from sandbox.image.capture_plan import Plan, Writer
from sandbox.image.capture_python import Relocation, examine


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """An empty site directory of an environment."""
    made = tmp_path / "env/lib/python3/site-packages"
    made.mkdir(parents=True)
    return made


@pytest.fixture
def environment(site: Path) -> Environment:
    """What an interpreter that sees only `site` would tell."""
    prefix = str(site.parents[2])
    return Environment(replace(examine(sys.executable), prefix=prefix, base_prefix=prefix, sites=[str(site)], user_base=""))


def install(
    site: Path,
    name: str,
    *,
    requires: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
    direct: object = None,
) -> None:
    """Lay a distribution down as pip does; a module of its own name comes with it."""
    module = name.replace("-", "_")
    info = site / f"{module}-1.0.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        "Version: 1.0",
        *(f"Requires-Dist: {r}" for r in requires),
        *(f"Provides-Extra: {e}" for e in extras),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n\n")
    (site / f"{module}.py").write_text(f"# {name}\n")
    recorded = [f"{module}.py", f"{info.name}/METADATA", f"{info.name}/RECORD", *files]
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))
        recorded.append(f"{info.name}/direct_url.json")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in recorded))


def names(environment: Environment, *wanted: str) -> list[str]:
    return [package.name for package in environment.select(wanted)]


def test_a_package_brings_what_it_depends_on(site: Path, environment: Environment) -> None:
    install(site, "app", requires=("Lib-B>=1", "c; python_version<'2'", "d; sys_platform=='linux'"))
    for name in ("lib-b", "c", "d", "unrelated"):
        install(site, name, requires=("app",))
    assert names(environment, "App") == ["app", "d", "lib-b"]


def test_an_extra_brings_its_own(site: Path, environment: Environment) -> None:
    install(site, "app", requires=("base", "fast; extra == 'speed'"), extras=("speed",))
    install(site, "base")
    install(site, "fast")
    assert names(environment, "app") == ["app", "base"]
    assert names(environment, "app[speed]") == ["app", "base", "fast"]


def test_all_is_everything(site: Path, environment: Environment) -> None:
    install(site, "one")
    install(site, "two")
    assert names(environment, "all") == ["one", "two"]


@pytest.mark.parametrize("name", ["nobody-has-this", "numpy pandas", "../x", ""])
def test_an_unknown_or_impossible_name_is_refused(environment: Environment, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        environment.select([name])
    assert caught.value.hint


def test_a_dependency_that_is_not_installed_is_said(site: Path, environment: Environment, caplog: pytest.LogCaptureFixture) -> None:
    install(site, "app", requires=("gone",))
    with caplog.at_level(logging.WARNING):
        assert names(environment, "app") == ["app"]
    assert "gone: a dependency that is not installed here" in caplog.text


def test_only_recorded_files_are_taken(site: Path, environment: Environment) -> None:
    (site / "app").mkdir()
    (site / "app/.env").write_text("TOKEN=secret")
    (site / "private.pth").write_text("/home/alice/src\n")
    (site / "other.py").write_text("")
    install(site, "app", files=("app/gone.py",))
    (package,) = environment.select(["app"])
    assert {file.removeprefix(f"{site}/") for file in package.files} == {"app.py", "app-1.0.dist-info/METADATA", "app-1.0.dist-info/RECORD"}


def test_where_it_was_installed_from_is_not_taken(site: Path, environment: Environment) -> None:
    install(site, "app", direct={"url": "https://token@private.example/app.whl", "archive_info": {}})
    (package,) = environment.select(["app"])
    assert not [file for file in package.files if file.endswith("direct_url.json")]


def test_an_editable_installation_is_refused_by_name_and_left_out_of_all(
    site: Path, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    install(site, "mine", direct={"url": "file:///home/alice/mine", "dir_info": {"editable": True}})
    install(site, "app")
    with pytest.raises(ImageError, match="package mine: installed in editable mode") as caught:
        environment.select(["mine"])
    assert "pip install ." in str(caught.value.hint)
    assert names(environment, "all") == ["app"]
    assert "left out: package mine" in caplog.text


def test_a_development_installation_from_a_source_tree_is_refused(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "mine.egg-info").mkdir(parents=True)
    (source / "mine.egg-info/PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    interpreter = replace(examine(sys.executable), sites=[str(site), str(source)])
    with pytest.raises(ImageError, match="editable"):
        Environment(interpreter).select(["mine"])


@pytest.mark.parametrize("path", ["../../../../secret.txt", "/etc/hostname", "../../../../../../../../etc/hostname"])
def test_a_record_that_names_a_file_outside_is_refused(site: Path, environment: Environment, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.txt").write_text("canary")
    install(site, "evil", files=(path,))
    with pytest.raises(ImageError, match="outside of the environment"):
        environment.select(["evil"])


def test_a_package_without_a_record_is_refused_with_what_to_do(site: Path, environment: Environment) -> None:
    install(site, "app")
    (site / "app-1.0.dist-info/RECORD").unlink()
    with pytest.raises(ImageError, match="has no RECORD") as caught:
        environment.select(["app"])
    assert "reinstall" in str(caught.value.hint)


PYTHON = "/usr/local/bin/python3.11"
SHEBANGS = {
    "plain": b"#!/home/alice/env/bin/python3\nimport sys\n",
    "with an argument": b"#!/home/alice/env/bin/python3.11 -sE\nimport sys\n",
    "env": b"#!/usr/bin/env python3\nimport sys\n",
    "too long for Linux": b"#!/bin/sh\n'''exec' /home/alice/" + b"x" * 200 + b"/bin/python \"$0\" \"$@\"\n' '''\nimport sys\n",
}


@pytest.mark.parametrize("kind", SHEBANGS)
def test_console_scripts_run_the_images_python(kind: str) -> None:
    assert edit_script(PYTHON, None)(SHEBANGS[kind]) == f"#!{PYTHON}\nimport sys\n".encode()


@pytest.mark.parametrize("script", [b"#!/bin/bash\necho python\n", b"\x7fELF python", b"import python\n"])
def test_other_programs_keep_their_first_line(script: bytes) -> None:
    assert edit_script(PYTHON, None)(script) == script


def test_records_tell_the_truth_about_what_was_edited_and_left_out(tmp_path: Path) -> None:
    source = tmp_path / "script"
    source.write_bytes(SHEBANGS["plain"])
    old = base64.urlsafe_b64encode(hashlib.sha256(source.read_bytes()).digest()).rstrip(b"=").decode()
    record = "/usr/local/lib/site-packages/app-1.0.dist-info/RECORD"
    plan = Plan()
    plan.file("/usr/local/bin/app", str(source), edit_script(PYTHON, Relocation(()).edit("app")))
    lines = (f"../../bin/app,sha256={old},41", "app-1.0.dist-info/RECORD,,", "app-1.0.dist-info/direct_url.json,sha256=x,1", '"a,b.py",,')
    plan.generated(record, "\n".join(lines))
    plan.generated("/usr/local/lib/site-packages/a,b.py", "")
    root = tmp_path / "out"
    root.mkdir()
    update_records(root, [record], Writer(root).write(plan))
    script = (root / "usr/local/bin/app").read_bytes()
    new = base64.urlsafe_b64encode(hashlib.sha256(script).digest()).rstrip(b"=").decode()
    expected = [f"../../bin/app,sha256={new},{len(script)}", "app-1.0.dist-info/RECORD,,", '"a,b.py",,']
    assert Path(f"{root}{record}").read_text().splitlines() == expected


def test_the_bundled_pip_stands_in_where_none_is_installed(tmp_path: Path) -> None:
    interpreter = examine(sys.executable)
    plan = Plan()
    assert plan_bundled_pip(plan, interpreter, "/usr/local/lib/site-packages")
    plan_pip_scripts(plan, interpreter, "/usr/local/bin", PYTHON)
    assert "/usr/local/lib/site-packages/pip/__main__.py" in plan.entries
    assert plan.entries["/usr/local/bin/pip3"].content.startswith(f"#!{PYTHON}\n".encode())
    nowhere = replace(interpreter, wheels="", paths={**interpreter.paths, "stdlib": str(tmp_path)})
    assert not plan_bundled_pip(Plan(), nowhere, "/usr/local/lib/site-packages")
