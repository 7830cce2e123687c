"""RUN --mount as a value, with the defaults of BuildKit's reference; what cannot be meant is an error with its word."""

from __future__ import annotations

import pytest

from sandbox.build import instructions as ins
from sandbox.build.dockerfile import parse
from sandbox.build.expand import Expander, expand
from sandbox.build.mounts import MountError, RunMount, parse_mount, read_mount
from sandbox.errors import DockerfileError


def plain(word: str) -> str:
    return word


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target=/x", RunMount("bind", "/x")),
        ("type=bind", RunMount("bind", "")),
        ("type=BIND,dst=x,src=a/../b,from=st", RunMount("bind", "x", "/b", "st")),
        ("destination=/x,source=../../etc", RunMount("bind", "/x", "/etc")),
        ("target=/x,rw", RunMount("bind", "/x", read_only=False)),
        ("target=/x,readwrite=true", RunMount("bind", "/x", read_only=False)),
        ("target=/x,rw,ro", RunMount("bind", "/x", read_only=True)),
        ("target=/x,readonly=false", RunMount("bind", "/x", read_only=False)),
        ("type=cache,target=/c", RunMount("cache", "/c", read_only=False)),
        ("type=cache,target=/c,ro", RunMount("cache", "/c", read_only=True)),
        (
            "type=cache,target=/c,id=i,sharing=LOCKED,mode=0700,uid=1,gid=2,from=st,source=/s",
            RunMount("cache", "/c", "/s", "st", False, "i", "locked", 0o700, 1, 2),
        ),
        ("type=tmpfs,target=/t", RunMount("tmpfs", "/t", read_only=False)),
        ("type=tmpfs,target=/t,size=64m", RunMount("tmpfs", "/t", read_only=False, size=64 << 20)),
        ("type=secret,id=aws", RunMount("secret", "/run/secrets/aws", id="aws")),
        ("type=secret,id=a/b/aws", RunMount("secret", "/run/secrets/aws", id="a/b/aws")),
        ("type=secret,target=/root/.aws/credentials", RunMount("secret", "/root/.aws/credentials", id="credentials")),
        ("type=secret,src=aws,target=/x", RunMount("secret", "/x", id="aws")),
        ("type=secret,id=K,env=KEY", RunMount("secret", None, id="K", env="KEY")),
        ("type=secret,id=K,env=", RunMount("secret", None, id="K", env="K")),
        ("type=secret,id=K,env=KEY,target=/x", RunMount("secret", "/x", id="K", env="KEY")),
        (
            "type=secret,id=K,required,mode=440,uid=5",
            RunMount("secret", "/run/secrets/K", id="K", required=True, mode=0o440, uid=5),
        ),
        ("type=secret,id=K,required=false", RunMount("secret", "/run/secrets/K", id="K")),
        ("required,type=secret,id=K", RunMount("secret", "/run/secrets/K", id="K", required=True)),
        ("type=ssh", RunMount("ssh", None, id="default")),
        ("type=ssh,id=github,target=/agent,required=1", RunMount("ssh", "/agent", id="github", required=True)),
        ('type=bind,"target=/with,comma"', RunMount("bind", "/with,comma")),
    ],
)
def test_mount_means_this(text: str, expected: RunMount) -> None:
    assert parse_mount(text, plain) == expected


@pytest.mark.parametrize(("text", "mode"), [("type=cache,target=/c", 0o755), ("type=secret,id=x", 0o400), ("type=ssh", 0o600)])
def test_modes_have_their_types_default(text: str, mode: int) -> None:
    assert parse_mount(text, plain).file_mode == mode


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected key=value"),
        ("=x", "unknown key"),
        ("type=volume,target=/x", "type=volume: expected bind cache tmpfs secret ssh"),
        ("target=/x,size=1g", "size: not a key of a mount of type bind"),
        ("target=/x,required", "required: not a key of a mount of type bind"),
        ("target=/x,sharing=shared", "sharing: not a key"),
        ("type=tmpfs,target=/x,uid=1", "uid: not a key"),
        ("type=secret,id=x,from=y", "from: not a key"),
        ("type=secret,id=x,src=y", "source and id"),
        ("type=ssh,source=x", "source: not a key"),
        ("type=tmpfs,target=/x,size=big", "size=big"),
        ("type=cache,target=/x,uid=-1", "uid=-1: expected a number"),
        ("type=cache,target=/x,gid=4294967296", "gid=4294967296: expected a number"),
        ("type=cache,target=/x,mode=rwx", "mode=rwx: expected an octal mode"),
        ("target=/x,ro=perhaps", "readonly=perhaps: expected true or false"),
        ('"target=/x', "not a list of key=value"),
    ],
)
def test_mount_that_cannot_be_meant_is_an_error(text: str, message: str) -> None:
    with pytest.raises(MountError) as caught:
        read_mount(text)
    assert message in str(caught.value)


def run(line: str, env: dict[str, str]) -> ins.Run:
    parsed = parse(f"FROM a\n{line}\n")
    expanded = expand(parsed.instructions[1], Expander(env, "\\", parsed.source, parsed.instructions[1].span))
    assert isinstance(expanded, ins.Run)
    return expanded


def test_values_expand_and_origins_are_known_before() -> None:
    line = "RUN --mount=type=cache,target=$T/x,id=${T#/},from=st --mount=type=$K,target=/t echo $T"
    assert parse(f"FROM a\n{line}\n").instructions[1].origins == ("st",)  # type: ignore[attr-defined]
    found = run(line, {"T": "/cache", "K": "tmpfs"})
    assert [(mount.type, mount.target, mount.id) for mount in found.mounts] == [("cache", "/cache/x", "cache"), ("tmpfs", "/t", None)]
    assert found.command.argv == ("echo $T",)


def test_a_variable_that_brings_a_wrong_value_is_an_error_at_the_line() -> None:
    with pytest.raises(DockerfileError, match="Dockerfile line 2: RUN: --mount: type=volume") as caught:
        run("RUN --mount=type=$K,target=/x true", {"K": "volume"})
    assert "^^^^^^^" in caught.value.excerpt


def test_a_variable_does_not_bring_another_key() -> None:
    assert run("RUN --mount=target=$T true", {"T": "/x,rw"}).mounts == (RunMount("bind", "/x,rw"),)
