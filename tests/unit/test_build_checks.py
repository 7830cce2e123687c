"""Each rule warns where BuildKit's own lint tests say it does (frontend/dockerfile/dockerfile_lint_test.go), and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sandbox.build.checks import OPTIONS_ARG, Surroundings, check, check_options
from sandbox.build.dockerfile import parse
from sandbox.build.expand import platform_args
from sandbox.build.rules import RULES, parse_check_options, unknown_rules
from sandbox.errors import DockerfileError
from sandbox.oci import ImageConfig, Platform, RootFS, RunConfig

LINUX = Platform("amd64", "linux")
ALPINE = ImageConfig(architecture="amd64", os="linux", config=RunConfig(env=["PATH=/bin"]), rootfs=RootFS("layers", []))
ARM = ImageConfig(architecture="arm64", os="linux", config=RunConfig(), rootfs=RootFS("layers", []))
HIDDEN = ("Dockerfile",)


def found(text: str, build_args: Mapping[str, str] | None = None) -> list[tuple[int, str, str]]:
    around = Surroundings(
        build_args=build_args or {},
        predefined=platform_args(LINUX, LINUX),
        image={"alpine": ALPINE, "busybox": ALPINE, "arm": ARM}.get,
        is_ignored=lambda path: path in HIDDEN,
    )
    return [(one.line, one.rule, one.message) for one in check(parse(text), around)]


def only_one(name: str) -> str:
    return f"Multiple {name} instructions should not be used in the same stage because only the last one will be used"


def secret(what: str) -> str:
    return f"Do not use ARG or ENV instructions for sensitive data ({what})"


CASING = "Command '{}' should match the case of the command majority ({})"
JSON = "JSON arguments recommended for {} to prevent unintended behavior related to OS signals"
DESCRIBED = "# check=experimental=InvalidDefinitionDescription\n"
IGNORED = "# check=experimental=CopyIgnoredFile\n"
FROM_VERSION = "Default value for ARG busybox:$VERSION results in empty or invalid base image name"

TABLE: list[tuple[str, list[tuple[int, str, str]]]] = [
    # names and casing
    ("\n#\n\nFROM scratch AS BadStageName\n", [(4, "StageNameCasing", "Stage name 'BadStageName' should be lowercase")]),
    ("FROM scratch as base2\nFROM scratch AS base3\n", [(1, "FromAsCasing", "'as' and 'FROM' keywords' casing do not match")]),
    ("from scratch AS base\nfrom scratch as base2\n", [(1, "FromAsCasing", "'AS' and 'from' keywords' casing do not match")]),
    ("FROM scratch\nCOPY D \\\n\n.\nCOPY D \\\n.\n", [(4, "NoEmptyContinuation", "Empty continuation line")]),
    (
        "From scratch as base\nFROM scratch AS base2\n",
        [(1, "ConsistentInstructionCasing", CASING.format("From", "uppercase"))],
    ),
    ("FROM scratch\ncopy D /foo\nCOPY D /bar\n", [(2, "ConsistentInstructionCasing", CASING.format("copy", "uppercase"))]),
    ("frOM scratch as base\nfrom scratch as b\n", [(1, "ConsistentInstructionCasing", CASING.format("frOM", "lowercase"))]),
    ("from scratch\nCOPY D /foo\ncopy D /bar\n", [(2, "ConsistentInstructionCasing", CASING.format("COPY", "lowercase"))]),
    ("from scratch\nCOPY D /a\nCOPY D /b\n", [(1, "ConsistentInstructionCasing", CASING.format("from", "uppercase"))]),
    ("from scratch\ncopy D /foo\ncopy D /bar\n", []),
    ("FROM alpine\nRUN <<'EOT'\nenv\nEOT\n", []),
    ("FROM scratch AS b\nFROM scratch AS b\n", [(2, "DuplicateStageName", 'Duplicate stage name "b", stage names should be unique')]),
    ("FROM scratch AS b1\nFROM scratch AS b2\n", []),
    (
        "FROM scratch AS scratch\nFROM scratch AS context\n",
        [
            (1, "ReservedStageName", 'Stage name should not use the same name as reserved stage "scratch"'),
            (2, "ReservedStageName", 'Stage name should not use the same name as reserved stage "context"'),
        ],
    ),
    ("FROM scratch\nFROM scratch AS a\n", []),
    # commands
    ("FROM scratch\nCMD mycommand\n", [(2, "JSONArgsRecommended", JSON.format("CMD"))]),
    ("FROM scratch\nENTRYPOINT mycommand\n", [(2, "JSONArgsRecommended", JSON.format("ENTRYPOINT"))]),
    ('FROM scratch\nSHELL ["/usr/bin/customshell"]\nCMD mycommand\n', []),
    ('FROM scratch AS base\nSHELL ["/usr/bin/customshell"]\nFROM base\nENTRYPOINT mycommand\n', []),
    (
        "FROM scratch\nMAINTAINER me@example.org\n",
        [(2, "MaintainerDeprecated", "Maintainer instruction is deprecated in favor of using label")],
    ),
    (
        'FROM scratch\nENTRYPOINT ["/a"]\nENTRYPOINT ["/b"]\nCMD ["/a"]\nCMD ["/b"]\nHEALTHCHECK CMD ["/a"]\nHEALTHCHECK CMD ["/b"]\n',
        [
            (2, "MultipleInstructionsDisallowed", only_one("ENTRYPOINT")),
            (4, "MultipleInstructionsDisallowed", only_one("CMD")),
            (6, "MultipleInstructionsDisallowed", only_one("HEALTHCHECK")),
        ],
    ),
    ('FROM scratch AS a\nCMD ["/a"]\nFROM a AS b\nCMD ["/b"]\n', []),
    (
        "FROM scratch\nENV testkey value\nLABEL key value\n",
        [
            (2, "LegacyKeyValueFormat", '"ENV key=value" should be used instead of legacy "ENV key value" format'),
            (3, "LegacyKeyValueFormat", '"LABEL key=value" should be used instead of legacy "LABEL key value" format'),
        ],
    ),
    ("FROM scratch\nENV testkey=value\nLABEL key=value\n", []),
    (
        "FROM scratch\nWORKDIR app/\nWORKDIR more\n",
        [(2, "WorkdirRelativePath", 'Relative workdir "app/" can have unexpected results if the base image changes')],
    ),
    ("FROM scratch AS a\nWORKDIR /app\nFROM a AS b\nWORKDIR subdir/\n", []),
    (
        "FROM scratch\nEXPOSE 80/TcP 8080/tcp 9000/UDP\n",
        [
            (2, "ExposeProtoCasing", "Defined protocol '80/TcP' in EXPOSE instruction should be lowercase"),
            (2, "ExposeProtoCasing", "Defined protocol '9000/UDP' in EXPOSE instruction should be lowercase"),
        ],
    ),
    (
        "FROM scratch\nEXPOSE 127.0.0.1:80:80\n",
        [(2, "ExposeInvalidFormat", "EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'")],
    ),
    # variables
    ("ARG base=scratch\nFROM $base\nCOPY D .\n", []),
    ("ARG BUILDPLATFORM=linux/amd64\nFROM --platform=$BUILDPLATFORM scratch\n", []),
    ("FROM --platform=$BUILDPLATFORM scratch\n", []),
    ("ARG DEBUG\nFROM scratch${DEBUG}\n", []),
    ("ARG DEBUG\nFROM scra${DEBUG:-tch}\n", []),
    ('ARG DEBUG=""\nFROM scratch${DEBUG-@bogus}\n', []),
    (
        "FROM --platform=$BULIDPLATFORM scratch\n",
        [(1, "UndefinedArgInFrom", "FROM argument 'BULIDPLATFORM' is not declared (did you mean BUILDPLATFORM?)")],
    ),
    (
        "ARG MY_OS=linux\nARG MY_ARCH=amd64\nFROM --platform=linux/${MYARCH} busybox\n",
        [(3, "UndefinedArgInFrom", "FROM argument 'MYARCH' is not declared (did you mean MY_ARCH?)")],
    ),
    ("ARG tag=latest\nFROM busybox:${tag}${version} AS b\n", [(2, "UndefinedArgInFrom", "FROM argument 'version' is not declared")]),
    ("ARG VERSION\nFROM busybox:$VERSION\n", [(2, "InvalidDefaultArgInFrom", FROM_VERSION)]),
    ("ARG IMAGE\nFROM $IMAGE\n", [(2, "InvalidDefaultArgInFrom", FROM_VERSION.replace("busybox:$VERSION", "$IMAGE"))]),
    ('ARG SFX="box:"\nFROM busy${SFX}\n', [(2, "InvalidDefaultArgInFrom", FROM_VERSION.replace("busybox:$VERSION", "busy${SFX}"))]),
    ('ARG VERSION="latest"\nFROM busybox:${VERSION}\n', []),
    ("ARG BUSYBOX_VARIANT\nFROM busybox:stable${BUSYBOX_VARIANT}\n", []),
    ("FROM scratch\nARG foo\nCOPY Dockerfile${foo} .\n", []),
    ("FROM alpine AS base\nARG foo=Dockerfile\nFROM base\nCOPY $foo .\n", []),
    ("FROM alpine\nRUN echo $PATH $NOPE\n", []),
    ("FROM alpine\nCOPY $foo .\nARG foo=bar\nRUN echo $foo\n", [(2, "UndefinedVar", "Usage of undefined variable '$foo'")]),
    (
        "FROM alpine\nARG DIR_BINARIES=b/\nARG DIR_ASSETS=a/\nCOPY $DIR_ASSET .\n",
        [(4, "UndefinedVar", "Usage of undefined variable '$DIR_ASSET' (did you mean $DIR_ASSETS?)")],
    ),
    ("FROM alpine\nENV PATH=$PAHT:/tmp/bin\n", [(2, "UndefinedVar", "Usage of undefined variable '$PAHT' (did you mean $PATH?)")]),
    ("FROM alpine\nARG a=$b\n", [(2, "UndefinedVar", "Usage of undefined variable '$b'")]),
    ("FROM unknown-image\nENV A=$SET_BY_THE_IMAGE_PERHAPS\n", []),
    # platforms
    (
        "FROM --platform=${TARGETPLATFORM} scratch\n",
        [
            (
                1,
                "RedundantTargetPlatform",
                "Setting platform to predefined ${TARGETPLATFORM} in FROM is redundant as this is the default behavior",
            )
        ],
    ),
    (
        "FROM --platform=linux/amd64 scratch\n",
        [(1, "FromPlatformFlagConstDisallowed", 'FROM --platform flag should not use constant value "linux/amd64"')],
    ),
    ("FROM --platform=linux/amd64 scratch AS my_amd64_stage\n", []),
    ("FROM --platform=linux/amd64 scratch AS linux\n", []),
    (
        "FROM arm\n",
        [
            (
                1,
                "InvalidBaseImagePlatform",
                'Base image arm was pulled with platform "linux/arm64", expected "linux/amd64" for current build',
            )
        ],
    ),
    # secrets
    (
        "FROM scratch\nARG SECRET_PASSPHRASE\nENV SUPER_Secret=foo\nENV password=bar secret=baz\n"
        "ARG super_duper_secret_token=foo auth=bar\nENV apikey=bar sunflower=foo\nENV git_key=\nENV PUBLIC_KEY=\nARG public_token\n",
        [
            (2, "SecretsUsedInArgOrEnv", secret('ARG "SECRET_PASSPHRASE"')),
            (3, "SecretsUsedInArgOrEnv", secret('ENV "SUPER_Secret"')),
            (4, "SecretsUsedInArgOrEnv", secret('ENV "password"')),
            (4, "SecretsUsedInArgOrEnv", secret('ENV "secret"')),
            (5, "SecretsUsedInArgOrEnv", secret('ARG "auth"')),
            (5, "SecretsUsedInArgOrEnv", secret('ARG "super_duper_secret_token"')),
            (6, "SecretsUsedInArgOrEnv", secret('ENV "apikey"')),
            (7, "SecretsUsedInArgOrEnv", secret('ENV "git_key"')),
        ],
    ),
    # what is asked for only
    ("FROM scratch\nCOPY Dockerfile .\n", []),
    (
        IGNORED + "FROM scratch\nCOPY ./Dockerfile .\nADD Dockerfile /windy\n",
        [
            (3, "CopyIgnoredFile", 'Attempting to Copy file "Dockerfile" that is excluded by .dockerignore'),
            (4, "CopyIgnoredFile", 'Attempting to Add file "Dockerfile" that is excluded by .dockerignore'),
        ],
    ),
    (
        IGNORED.replace("=exp", "=skip=all;exp") + "FROM scratch\nCOPY Dockerfile .\n",
        [(3, "CopyIgnoredFile", 'Attempting to Copy file "Dockerfile" that is excluded by .dockerignore')],
    ),
    (IGNORED + "FROM scratch AS base\nCOPY x /Dockerfile\nFROM base\nCOPY --from=base Dockerfile /x\n", []),
    (
        DESCRIBED + "# foo this is the foo\nARG foo=bar\n\n# base this is the base image\nFROM scratch AS base\n\n"
        "# version this is the version number\nARG version=latest\n\n# baz this is the baz\nARG foo=baz bar=qux baz=quux\n"
        "#\nARG bit=bat\n\n"
        "# comment for something other than ARG or FROM\nCOPY x .\n",
        [],
    ),
    (
        DESCRIBED + "# bar this is the bar\nARG foo=bar\n# BasE this is the BasE image\nFROM scratch AS base\n"
        "# definitely a bad comment\nARG version=latest\n# definitely a bad comment\nARG foo=baz bar=qux baz=quux\n",
        [
            (3, "InvalidDefinitionDescription", "Comment for ARG should follow the format: `# foo <description>`"),
            (5, "InvalidDefinitionDescription", "Comment for FROM should follow the format: `# base <description>`"),
            (7, "InvalidDefinitionDescription", "Comment for ARG should follow the format: `# version <description>`"),
            (9, "InvalidDefinitionDescription", "Comment for ARG should follow the format: `# <arg_key> <description>`"),
        ],
    ),
    # what the file skips
    ("#check=skip=all\nFROM scratch as base\ncopy D .\n", []),
    ("#check=skip=all;error=true\nFROM scratch as base\ncopy D .\n", []),
    ("#check=skip=ConsistentInstructionCasing,FromAsCasing\nFROM scratch as base\ncopy D .\n", []),
    (
        "#check=skip=ConsistentInstructionCasing\nFROM scratch as base\ncopy D .\n",
        [(2, "FromAsCasing", "'as' and 'FROM' keywords' casing do not match")],
    ),
    (
        "FROM scratch\n# check=skip=SecretsUsedInArgOrEnv\nENV API_KEY=x\nENV API_KEY=x\n",
        [(4, "SecretsUsedInArgOrEnv", secret('ENV "API_KEY"'))],
    ),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_check_finds_exactly_this(text: str, expected: list[tuple[int, str, str]]) -> None:
    assert found(text) == expected


def test_every_rule_is_seen_to_find_something() -> None:
    assert {rule for _, expected in TABLE for _, rule, _ in expected} == set(RULES)


def test_given_values_do_not_hide_an_invalid_default() -> None:
    assert [rule for _, rule, _ in found("ARG VERSION\nFROM busybox:$VERSION\n", {"VERSION": "latest"})] == ["InvalidDefaultArgInFrom"]


def test_build_argument_takes_the_place_of_the_files_options() -> None:
    text = "#check=skip=all\nFROM scratch as base\ncopy D .\n"
    assert [rule for _, rule, _ in found(text, {OPTIONS_ARG: "skip=ConsistentInstructionCasing;error=true"})] == ["FromAsCasing"]
    assert check_options(parse("#check=error=true\nFROM a\n"), {OPTIONS_ARG: "skip=all"}).error is False
    with pytest.raises(DockerfileError, match=f"{OPTIONS_ARG}: check: unknown option nope"):
        check_options(parse("FROM a\n"), {OPTIONS_ARG: "nope"})


@pytest.mark.parametrize("text", ["skip", "skpi=all", "error=perhaps"])
def test_options_that_cannot_be_meant_are_an_error_at_their_line(text: str) -> None:
    with pytest.raises(DockerfileError, match="Dockerfile line 2: check: "):
        parse(f"# syntax=docker/dockerfile:1\n# check={text}\nFROM a\n")


def test_names_no_rule_has_are_told() -> None:
    assert unknown_rules(parse_check_options("skip=FromAsCasing,Nope;experimental=all")) == ["Nope"]


def test_a_broken_instruction_is_left_to_the_build() -> None:
    assert found("FROM alpine\nENV A=${B:?needed}\nENV PASSWORD=x\n") == [(3, "SecretsUsedInArgOrEnv", secret('ENV "PASSWORD"'))]
