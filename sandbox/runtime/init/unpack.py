"""Unpack a tar from stdin into a directory of the container, as the container's root and from inside it.

Our own code, already loaded when the container is entered: neither its `tar` nor a library of it is run (CVE-2019-14271),
and whatever its links point to is inside it.
"""

from __future__ import annotations

import os
import sys
import tarfile

from sandbox.runtime.init import program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


_TRUSTED: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
"""Owners, modes and links as they are. Before 3.11.4 (Debian 12 has 3.11.2) tarfile knew nothing else."""


class Unpacker:
    """Takes the place of a program: `start` forks, the child unpacks and exits with 0, or 1 and a line on stderr."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.identity = program.Identity(0, 0, [0], "/")

    def start(self, stdio: Sequence[int], terminal: int | None = None) -> int:
        """Fork and unpack what comes from `stdio[0]`; the child's pid."""
        pid = os.fork()
        if pid == 0:
            self._unpack(stdio)
        return pid

    def _unpack(self, stdio: Sequence[int]) -> None:
        """In the child: never returns."""
        code = 1
        try:
            program.reset_signals()
            if not os.path.isdir(self._directory):
                raise NotADirectoryError(f"{self._directory}: no such directory in the container")
            # Owners by number: names would be looked up by nss, which loads the container's libraries.
            with open(stdio[0], "rb", closefd=False) as source, tarfile.open(fileobj=source, mode="r|") as tar:
                tar.extractall(self._directory, numeric_owner=True, **_TRUSTED)
            code = 0
        except (OSError, tarfile.TarError) as err:
            os.write(stdio[2], f"{err}\n".encode(sys.getfilesystemencoding(), "replace"))
        except Exception as err:  # noqa: BLE001  # a mistake of ours: nobody else could report it from here
            os.write(stdio[2], f"unpack: {err!r}\n".encode(sys.getfilesystemencoding(), "replace"))
        finally:
            os._exit(code)
