"""COPY and ADD: which files, as whose, and the digest of exactly those files for the cache key.

What counts in a digest is what BuildKit counts: names, types, modes, owners where they are kept, link targets, contents,
copied attributes. Times do not.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from sandbox.build import archives
from sandbox.build import instructions as ins
from sandbox.build.accounts import resolve_owner
from sandbox.build.context import Context, Match, Source, TreeSource, find, kind_of, walk
from sandbox.build.globs import BadPattern, is_wild
from sandbox.build.memory import Memory
from sandbox.build.modes import parse_mode
from sandbox.build.site import Site
from sandbox.build.state import BuildState, Change
from sandbox.build.transfer import LayerWriter, Manner
from sandbox.errors import BuildError, UnsafeLayer
from sandbox.image.store import Draft
from sandbox.image.tree import Entry, Tree

_REMOTE = re.compile(r"(https?|ftp|git|ssh)://|git@[\w.-]+:", re.IGNORECASE)


@dataclass(frozen=True)
class _Job:
    """A COPY or ADD with everything resolved but the files: `target` is absolute, `into`: it was written as a directory."""

    site: Site
    state: BuildState
    instruction: ins.Files
    source: Source
    target: str
    into: bool
    unpack: bool

    @cached_property
    def matches(self) -> tuple[Match, ...]:
        """The files named, source by source; looked for once."""
        return tuple(match for pattern in self.instruction.sources for match in _matches(self, pattern))

    def digests(self) -> tuple[str, ...]:
        """A digest for each match."""
        return tuple(content_digest(self.source, match, self.site.memory) for match in self.matches)

    def make(self, draft: Draft) -> None:
        """Fill the layer."""
        i, site = self.instruction, self.site
        writer = LayerWriter(site.store.lowers(self.state.top), draft.upper, site.now_ns, site.warn)
        manner = Manner(resolve_owner(writer.tree, i.chown) if i.chown else None, parse_mode(i.chmod) if i.chmod else None)
        for match in self.matches:
            if not (self.unpack and self._unpack(writer, match, manner)):
                writer.copy(self.source, match, self.target, into=self.into, manner=manner)
        for heredoc in i.heredocs:
            writer.write_file(self.target, heredoc.name, heredoc.content.encode(), into=self.into, manner=manner)
        writer.finish()

    def _unpack(self, writer: LayerWriter, match: Match, manner: Manner) -> bool:
        """Unpack the match when it is a tar archive, compressed or not; False when it is something else."""
        if not match.entry.is_file:
            return False
        with os.fdopen(self.source.open(match.entry), "rb") as stream:
            try:
                return archives.unpack(stream, writer, self.target, manner)
            except (BuildError, UnsafeLayer) as err:
                err.args = (f"{match.entry.path[1:]}: {err}",)
                raise


def copy_files(state: BuildState, i: ins.Copy, site: Site) -> Change:
    """COPY. With --from, what is remembered for the origin's chain id and the text spares looking at the files."""
    if i.origin is None:
        job = _job(state, i, site, _context(i, site), unpack=False)
        return Change(state, _history("COPY", i), (*_inputs(job), *job.digests()), make=job.make)
    origin = site.origin(i.origin)
    job = _job(state, i, site, TreeSource(origin.tree), unpack=False)
    quick = (*_inputs(job), "from", origin.chain_id, *i.sources)
    return Change(state, _history("COPY", i), quick, lambda: (*_inputs(job), *job.digests()), job.make)


def add_files(state: BuildState, i: ins.Add, site: Site) -> Change:
    """ADD from the context."""
    for source in i.sources:
        if _REMOTE.match(source):
            raise site.error(f"ADD {source}: remote sources are not supported yet", i, word=source, hint="fetch it in a RUN")
    job = _job(state, i, site, _context(i, site), unpack=True)
    return Change(state, _history("ADD", i), (*_inputs(job), *job.digests()), make=job.make)


def _context(i: ins.Files, site: Site) -> Source:
    if site.context is None and i.sources:
        raise site.error("no build context to copy from", i, word=i.sources[0], hint="give a directory to build in")
    return site.context or TreeSource(Tree(()))  # a heredoc needs nothing of a context


def _job(state: BuildState, i: ins.Files, site: Site, source: Source, *, unpack: bool) -> _Job:
    name = type(i).__name__.upper()
    if not i.destination or not all(i.sources):
        raise site.error(f"{name}: expected a path, got an empty one", i)
    into = i.destination.endswith("/") or i.destination in (".", "..") or i.destination.endswith(("/.", "/.."))
    if len(i.sources) + len(i.heredocs) > 1 and not into:
        message = f"{name}: expected a destination that ends with / for more than one source"
        raise site.error(message, i, word=i.destination, hint=f"write {i.destination}/")
    if i.chmod:
        parse_mode(i.chmod)
    return _Job(site, state, i, source, posixpath.join(state.workdir, i.destination), into, unpack)


def _inputs(job: _Job) -> tuple[str, ...]:
    """What decides beside the files."""
    i = job.instruction
    heredocs = [part for heredoc in i.heredocs for part in (heredoc.name, heredoc.content)]
    kind = "add" if job.unpack else "copy"
    return (kind, job.target, str(job.into), i.chown or "", i.chmod or "", str(len(i.heredocs)), *heredocs)


def _history(name: str, i: ins.Files) -> str:
    flags = [f"--{flag}={value}" for flag, value in (("chown", i.chown), ("chmod", i.chmod)) if value]
    return " ".join([name, *flags, *i.sources, *(f"<<{heredoc.name}" for heredoc in i.heredocs), i.destination])


def _matches(job: _Job, pattern: str) -> list[Match]:
    try:
        found = find(job.source, pattern)
    except BadPattern as err:
        raise job.site.error(str(err), job.instruction, word=pattern) from None
    except FileNotFoundError as err:
        raise BuildError(f"{str(err.filename).lstrip('/')}: {err.strerror}") from None
    if found:
        return found
    if any(map(is_wild, pattern.split("/"))):
        job.site.warn(f"{pattern}: matches nothing, nothing is copied")  # BuildKit lets it pass: `yarn.lock*` is a common idiom
        return []
    raise _missing(job, pattern)


def _missing(job: _Job, pattern: str) -> BuildError:
    """Say why a named file is not there: ignored, misspelt, or outside."""
    if isinstance(job.source, Context):
        if job.source.is_hidden(pattern):
            return BuildError(f"{pattern}: excluded by .dockerignore")
        hint = "paths are below the build context; .. does not lead out of it" if ".." in pattern.split("/") else None
        return BuildError(f"{pattern}: not in the build context", hint=hint or _similar(job.source, pattern))
    return BuildError(f"{pattern}: not found", hint=_similar(job.source, pattern))


def _similar(source: Source, pattern: str) -> str | None:
    directory, _, name = pattern.strip("/").rpartition("/")
    entry = source.lookup("/" + directory, follow=True)
    names = [child.name for child in source.scandir(entry.path)] if entry is not None and entry.is_dir else []
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {posixpath.join(directory, close[0])}?" if close else None


# -- digests -----------------------------------------------------------------------------------------------------------


def content_digest(source: Source, match: Match, memory: Memory) -> str:
    """The digest of what one match brings. A directory's own name and metadata do not count: only its contents are copied."""
    total = hashlib.sha256()
    root = match.entry
    skip = len(root.path) if root.path != "/" else 0
    for entry in walk(source, root):
        if entry is root and root.is_dir:
            total.update(b"directory\0")
            continue
        name = match.name if entry is root else entry.path[skip:]
        total.update(b"%b\0" % os.fsencode(name))
        for part in _record(source, entry, memory):
            total.update(part)
    return total.hexdigest()


def _record(source: Source, entry: Entry, memory: Memory) -> Iterator[bytes]:
    """What counts of one entry, its name apart."""
    status, kind = entry.stat, kind_of(entry)
    owner = (status.st_uid, status.st_gid) if source.keeps_owner else (0, 0)
    mode = 0 if kind == "l" else stat.S_IMODE(status.st_mode)
    yield b"%b %o %d %d\0" % (kind.encode(), mode, *owner)
    if kind == "-":
        yield memory.file_digest(status, lambda: source.open(entry))
    elif kind == "l":
        yield b"%b\0" % os.fsencode(source.readlink(entry))
    elif kind in "cb":
        yield b"%d\0" % status.st_rdev
    for name, value in sorted(source.xattrs(entry).items()):
        yield b"%b=%d:%b" % (os.fsencode(name), len(value), value)
