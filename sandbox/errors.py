"""Every error the engine raises on purpose, as one tree. Imports nothing.

A message is lower case without a final period: the thing first, then what happened. The remedy goes to `hint`.
Values a caller may want to act on are attributes, never only text.
"""

from __future__ import annotations


class SandboxError(Exception):
    """Base of all errors raised on purpose; `str(error)` is one line, `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidInput(SandboxError):
    """The caller asked for something that cannot be meant."""


class InvalidReference(InvalidInput):
    """A text that is not an image reference (distribution/reference grammar)."""


class InvalidOption(InvalidInput):
    """A flag or option value that cannot be parsed or contradicts another."""


class InvalidBundle(InvalidInput):
    """A config.json that does not follow the OCI runtime specification, or asks for what this runtime does not have."""


class DockerfileError(InvalidInput):
    """A Dockerfile that cannot be parsed; `span` (line numbers, 1-based) says where, `excerpt` shows the lines with a caret."""

    def __init__(self, message: str, *, span: object | None = None, excerpt: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.span = span
        self.excerpt = excerpt


class ImageError(SandboxError):
    """Something about an image in the local store or in an archive."""


class ImageNotFound(ImageError):
    """No image of that name or id in the store."""


class InvalidImage(ImageError):
    """An archive, manifest or config that is not what its specification asks for."""


class DigestMismatch(ImageError):
    """Bytes whose digest is not the one promised."""

    def __init__(self, message: str, *, expected: str, actual: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.expected = expected
        self.actual = actual


class UnsafeLayer(ImageError):
    """A layer entry that would write outside the layer (`path` is the entry's own name)."""

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.path = path


class RegistryError(SandboxError):
    """A registry refused or could not be understood."""


class Unauthorized(RegistryError):
    """The registry wants other credentials."""


class NotInRegistry(RegistryError):
    """The registry does not have it."""


class RateLimited(RegistryError):
    """The registry asks to wait `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class BuildError(SandboxError):
    """A build that did not come to its end."""


class StepFailed(BuildError):
    """One build step failed. `span`: its lines; `instruction`: its text; `completed`: how its process ended (or None);
    `output`: the last lines it printed; `excerpt`: the Dockerfile lines around it, ready to print."""

    def __init__(
        self,
        message: str,
        *,
        span: object | None = None,
        instruction: str = "",
        completed: object | None = None,
        output: str = "",
        excerpt: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.span = span
        self.instruction = instruction
        self.completed = completed
        self.output = output
        self.excerpt = excerpt


class UnknownStage(BuildError):
    """`--target`, `FROM` or `--from` names a stage that does not exist."""


class SetupFailed(SandboxError):
    """The container could not be set up; nothing of it is left."""


class PortTaken(SetupFailed):
    """A port of this machine that was to be published has another owner."""

    def __init__(self, message: str, *, port: int, protocol: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.port = port
        self.protocol = protocol


class Unsupported(SetupFailed):
    """This host does not offer `feature`."""

    def __init__(self, message: str, *, feature: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.feature = feature


class NetworkError(SandboxError):
    """A network cannot be made or joined."""


class NetworkNotFound(NetworkError):
    """No network of that name."""


class VolumeNotFound(SandboxError):
    """No volume of that name."""


class ContainerError(SandboxError):
    """Something about one container."""


class ContainerNotFound(ContainerError):
    """No container of that name or id prefix."""


class NotInContainer(ContainerError):
    """The container has no such file or directory."""


class WrongState(ContainerError):
    """The container is not in a state that allows this (`wanted`, `actual`)."""

    def __init__(self, message: str, *, wanted: str, actual: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.wanted = wanted
        self.actual = actual


class CellFailed(ContainerError):
    """A cell's container ended badly. `kind`: exit, oom, timeout, pids, signal, exec or interrupted."""

    def __init__(self, message: str, *, kind: str, exit_code: int, usage: object | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.exit_code = exit_code
        self.usage = usage
