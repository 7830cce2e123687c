"""What can be said of an ADD's URL without fetching it."""

from __future__ import annotations

import posixpath
import re
import urllib.parse

from sandbox.errors import BuildError

CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}")


def is_url(source: str) -> bool:
    """Whether ADD fetches it by HTTP (unless it is a git repository)."""
    return source.startswith(("http://", "https://"))


def name_of(url: str) -> str | None:
    """The file name a URL's path ends in; None when it has none."""
    name = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return name if name not in ("", ".", "..") and "/" not in name and "\0" not in name else None


def check_digest(text: str) -> str:
    """`sha256:` and 64 hexadecimal digits, as --checksum has it for a URL; BuildError for anything else."""
    if not CHECKSUM.fullmatch(text):
        raise BuildError(f"--checksum={text}: expected sha256: and 64 hexadecimal digits", hint="write --checksum=sha256:<digest>")
    return text
