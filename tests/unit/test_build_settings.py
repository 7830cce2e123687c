"""docker build's further options as settings: what each means, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.build.settings import Settings, read_secret, settings_of
from sandbox.errors import InvalidOption, SandboxError, Unsupported
from sandbox.options import BuildOptions


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("id=t,src={file}", {}, ("t", b"from a file")),
        ("id=t,source={file},type=file", {}, ("t", b"from a file")),
        ("id=t,env=TOKEN", {"TOKEN": "v"}, ("t", b"v")),
        ("id=TOKEN", {"TOKEN": "v"}, ("TOKEN", b"v")),
        ("type=env,id=TOKEN", {"TOKEN": "v"}, ("TOKEN", b"v")),
        ("id={file}", {}, ("{file}", b"from a file")),
    ],
)
def test_secrets(tmp_path: Path, text: str, environ: dict[str, str], expected: tuple[str, bytes]) -> None:
    file = tmp_path / "file"
    file.write_text("from a file")
    name, value = expected
    assert read_secret(text.format(file=file), environ) == (name.format(file=file), value)


@pytest.mark.parametrize("text", ["t", "id=", "id=t,src=a,env=b", "id=t,env=MISSING", "id=t,src=/nowhere", "id=t,type=vault", "id=t,key=x"])
def test_secrets_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidOption):
        read_secret(text, {})


def test_a_secret_is_not_in_the_settings_text() -> None:
    settings = settings_of(BuildOptions(secret=("id=T",)), {"T": "hidden-value"})
    assert settings.secrets == {"T": b"hidden-value"}
    assert "hidden-value" not in repr(settings)


def test_options_become_settings() -> None:
    options = BuildOptions(
        add_host=("db:10.0.0.1", "v6=[::1]"), build_context=("n=dir",), no_cache_filter=("A,b",), ssh=("default",), jobs=3
    )
    found = settings_of(options, {"SSH_AUTH_SOCK": "/agent"})
    assert found.limits.hosts == (("db", "10.0.0.1"), ("v6", "::1"))
    assert (found.contexts, found.no_cache_stages, found.ssh, found.jobs) == ({"n": "dir"}, ("a", "b"), {"default": ("/agent",)}, 3)
    assert settings_of(BuildOptions(), {}) == Settings()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (BuildOptions(cgroup_parent="x"), Unsupported),
        (BuildOptions(platform="plan9/mips"), Unsupported),
        (BuildOptions(allow=("anything",)), InvalidOption),
        (BuildOptions(add_host=("db",)), InvalidOption),
        (BuildOptions(build_context=("dir",)), InvalidOption),
        (BuildOptions(ssh=("default",)), InvalidOption),
    ],
)
def test_options_that_are_refused(options: BuildOptions, error: type[SandboxError]) -> None:
    with pytest.raises(error):
        settings_of(options, {})
