"""The rules a Dockerfile is checked against, with the names and words of BuildKit's (frontend/dockerfile/linter), and which of
them a file wants: `# check=skip=RULE,…|all;error=true;experimental=RULE,…|all`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sandbox.build.source import did_you_mean


class Rule(msgspec.Struct, frozen=True):
    """One row: `description` says it in general, `message` of one place (a format). `experimental`: only when asked for."""

    description: str
    message: str
    experimental: bool = False


RULES: dict[str, Rule] = {
    "StageNameCasing": Rule("Stage names should be lowercase", "Stage name '{}' should be lowercase"),
    "FromAsCasing": Rule("The 'as' keyword should match the case of the 'from' keyword", "'{}' and '{}' keywords' casing do not match"),
    "NoEmptyContinuation": Rule("Empty continuation lines will become errors in a future release", "Empty continuation line"),
    "ConsistentInstructionCasing": Rule(
        "All commands within the Dockerfile should use the same casing (either upper or lower)",
        "Command '{}' should match the case of the command majority ({})",
    ),
    "DuplicateStageName": Rule("Stage names should be unique", 'Duplicate stage name "{}", stage names should be unique'),
    "ReservedStageName": Rule(
        "Reserved words should not be used as stage names", 'Stage name should not use the same name as reserved stage "{}"'
    ),
    "JSONArgsRecommended": Rule(
        "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals",
        "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
    ),
    "MaintainerDeprecated": Rule(
        "The MAINTAINER instruction is deprecated, use a label instead to define an image author",
        "Maintainer instruction is deprecated in favor of using label",
    ),
    "UndefinedArgInFrom": Rule("FROM command must use declared ARGs", "FROM argument '{}' is not declared{}"),
    "WorkdirRelativePath": Rule(
        "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes",
        'Relative workdir "{}" can have unexpected results if the base image changes',
    ),
    "UndefinedVar": Rule("Variables should be defined before their use", "Usage of undefined variable '${}'{}"),
    "MultipleInstructionsDisallowed": Rule(
        "Multiple instructions of the same type should not be used in the same stage",
        "Multiple {} instructions should not be used in the same stage because only the last one will be used",
    ),
    "LegacyKeyValueFormat": Rule(
        "Legacy key/value format with whitespace separator should not be used",
        '"{0} key=value" should be used instead of legacy "{0} key value" format',
    ),
    "InvalidBaseImagePlatform": Rule(
        "Base image platform does not match expected target platform",
        'Base image {} was pulled with platform "{}", expected "{}" for current build',
    ),
    "RedundantTargetPlatform": Rule(
        "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
    ),
    "SecretsUsedInArgOrEnv": Rule(
        "Sensitive data should not be used in the ARG or ENV commands", 'Do not use ARG or ENV instructions for sensitive data ({} "{}")'
    ),
    "InvalidDefaultArgInFrom": Rule(
        "Default value for global ARG results in an empty or invalid base image name",
        "Default value for ARG {} results in empty or invalid base image name",
    ),
    "FromPlatformFlagConstDisallowed": Rule(
        "FROM --platform flag should not use a constant value", 'FROM --platform flag should not use constant value "{}"'
    ),
    "CopyIgnoredFile": Rule(
        "Attempting to Copy file that is excluded by .dockerignore",
        'Attempting to {} file "{}" that is excluded by .dockerignore',
        experimental=True,
    ),
    "InvalidDefinitionDescription": Rule(
        "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a"
        " description comment, add an empty line or comment between the instruction and the comment.",
        "Comment for {} should follow the format: `# {} <description>`",
        experimental=True,
    ),
    "ExposeProtoCasing": Rule(
        "Protocol in EXPOSE instruction should be lowercase", "Defined protocol '{}' in EXPOSE instruction should be lowercase"
    ),
    "ExposeInvalidFormat": Rule(
        "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release",
        "EXPOSE instruction should not define an IP address or host-port mapping, found '{}'",
    ),
}


class Finding(msgspec.Struct, frozen=True):
    """One place where a rule is not kept: `line` counts from 1."""

    rule: str
    line: int
    message: str

    @property
    def description(self) -> str:
        """The rule in general."""
        return RULES[self.rule].description


def finding(rule: str, line: int, *values: object) -> Finding:
    """A finding with the rule's words."""
    return Finding(rule, line, RULES[rule].message.format(*values))


class CheckOptionError(ValueError):
    """Options of a check that cannot be meant; `hint` may say what was."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class CheckOptions(msgspec.Struct, frozen=True):
    """What a check leaves out and whether its findings are an error."""

    skip: frozenset[str] = msgspec.field(default_factory=frozenset)
    experimental: frozenset[str] = msgspec.field(default_factory=frozenset)
    error: bool = False

    def wants(self, rule: str) -> bool:
        """Whether a rule's findings are told. An experimental rule asked for by name is, whatever is skipped."""
        if RULES[rule].experimental:
            return rule in self.experimental or ("all" in self.experimental and not self.skip & {rule, "all"})
        return not self.skip & {rule, "all"}

    def merged(self, other: CheckOptions) -> CheckOptions:
        """Both together: what a comment above one instruction adds."""
        return CheckOptions(self.skip | other.skip, self.experimental | other.experimental, self.error or other.error)


def parse_check_options(text: str) -> CheckOptions:
    """The value of `# check=`; raises CheckOptionError."""
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in _KEYS or not equals:
            hint = did_you_mean(key, _KEYS) or "the options are skip= error= experimental="
            raise CheckOptionError(f"check: unknown option {part}", hint)
        values[key] = value
    error = values.get("error", "false").lower()
    if error not in _TRUE + _FALSE:
        raise CheckOptionError(f"check: error={error}: expected true or false")
    return CheckOptions(_rules(values.get("skip", "")), _rules(values.get("experimental", "")), error in _TRUE)


_KEYS = ("skip", "error", "experimental")
_TRUE, _FALSE = ("1", "t", "true"), ("0", "f", "false", "")


def _rules(text: str) -> frozenset[str]:
    return frozenset(filter(None, (name.strip() for name in text.split(","))))


def unknown_rules(options: CheckOptions) -> Iterable[str]:
    """Names in the options that no rule has: a newer BuildKit's, or misspelt."""
    return sorted((options.skip | options.experimental) - {*RULES, "all"})
