"""Writing a built image to where `--output` says: one function a kind."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from sandbox.build.outputs import Output, metadata_of
from sandbox.errors import InvalidOption, SandboxError
from sandbox.image.apply import apply_tar
from sandbox.image.archive import pack, write_archive, write_layout, written_whole
from sandbox.image.layers import ChangesetReader, FlatTar
from sandbox.image.reference import Reference
from sandbox.image.store import Image, Store


def export(
    store: Store, image: Image, outputs: Sequence[Output], tags: Sequence[Reference], stdout: IO[bytes] | None = None
) -> dict[str, object]:
    """Write the image to every output; files appear whole or not at all. Returns what --metadata-file holds.

    `stdout` is where `-` goes. SandboxError when a place cannot be written.
    """
    shown = image
    for output in outputs:
        names = list(dict.fromkeys([*tags, *output.names]))
        if output.kind in ("oci", "docker") and output.dest is not None:
            shown = pack(store, image, output.packing)
        try:
            _WRITERS[output.kind](_Export(store, image if output.kind in ("tar", "local") else shown, names, output, stdout))
        except OSError as err:
            raise SandboxError(f"output {output.dest}: {(err.strerror or str(err)).lower()}") from err
    names = list(dict.fromkeys([*tags, *(name for output in outputs for name in output.names)]))
    return metadata_of(shown, names)


class _Export(msgspec.Struct, frozen=True):
    store: Store
    image: Image
    names: Sequence[Reference]
    output: Output
    stdout: IO[bytes] | None

    def write(self, writer: Callable[[IO[bytes]], object]) -> None:
        """Hand the writer stdout or a file of the output's name."""
        dest = self.output.dest or ""
        if dest == "-":
            if self.stdout is None:
                raise InvalidOption("output -: there is no stdout here")
            writer(self.stdout)
            self.stdout.flush()
            return
        with written_whole(Path(dest)) as out:
            writer(out)


def _tag(job: _Export) -> None:
    for name in job.names:
        job.store.tag(name, job.image)


def _archive(job: _Export) -> None:
    if job.output.dest is None:  # docker without dest: into the engine, which is this one
        _tag(job)
        return
    names: Sequence[Reference | None] = job.names or [None]
    named = [(name, job.image) for name in names]
    if job.output.directory:
        write_layout(job.store, named, Path(job.output.dest))
    else:
        job.write(lambda out: write_archive(job.store, named, out, docker=job.output.kind == "docker"))


def _tar(job: _Export) -> None:
    def write(out: IO[bytes]) -> None:
        for chunk in FlatTar(job.store.tree(job.image.top)):
            out.write(chunk)

    with job.store.shared():
        job.write(write)


def _local(job: _Export) -> None:
    """Files become the property of whoever builds, as buildx has it: the way back into a context."""
    directory = Path(job.output.dest or ".")
    directory.mkdir(parents=True, exist_ok=True)
    with job.store.shared():
        files = FlatTar(job.store.tree(job.image.top), (os.geteuid(), os.getegid()))
        apply_tar(io.BufferedReader(ChangesetReader(files)), directory)


_WRITERS: dict[str, Callable[[_Export], None]] = {"image": _tag, "oci": _archive, "docker": _archive, "tar": _tar, "local": _local}
