"""COPY and ADD: which files, as whose, and the digest of exactly those files for the cache key.

What counts in a digest is what BuildKit counts: names, types, modes, owners where they are kept, link targets, contents,
copied attributes. Times do not.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property

import msgspec
from msgspec.structs import replace

from sandbox.build import instructions as ins
from sandbox.build.accounts import resolve_owner
from sandbox.build.context import Context, Match, Source, TreeSource, kind_of, walk
from sandbox.build.globs import BadPattern
from sandbox.build.memory import Memory
from sandbox.build.modes import parse_mode
from sandbox.build.remote import Remote, check_flags, is_remote, remote_source
from sandbox.build.selection import Piece, has_wildcards, narrowed, patterns, select, select_parents
from sandbox.build.site import Site
from sandbox.build.state import BuildState, Change
from sandbox.build.transfer import LayerWriter, Manner
from sandbox.errors import BuildError, UnsafeLayer
from sandbox.image.drafts import Draft, remove_tree
from sandbox.image.tree import Entry, Tree

_NUMERIC = re.compile(r"\d*(:\d*)?")


class _Job(msgspec.Struct, frozen=True, dict=True):
    """A COPY or ADD with everything resolved but the files: `target` is absolute, `into`: it was written as a directory."""

    site: Site
    state: BuildState
    instruction: ins.Files
    source: Source
    target: str
    into: bool

    @property
    def unpacks(self) -> bool:
        """Whether archives of the context are unpacked."""
        return isinstance(self.instruction, ins.Add) and self.instruction.unpack is not False

    @cached_property
    def found(self) -> tuple[Remote | tuple[Piece, ...], ...]:
        """What each source names; looked for once."""
        return tuple(remote_source(text, self.instruction, self.site) or tuple(_pieces(self, text)) for text in self.instruction.sources)

    def digests(self) -> tuple[str, ...]:
        """A digest for each piece."""
        memory = self.site.memory
        digests: list[str] = []
        for found in self.found:
            if isinstance(found, Remote):
                digests += found.inputs
            else:
                digests += (content_digest(piece.source, piece.match, memory) for piece in found)
        return tuple(digests)

    def make(self, draft: Draft) -> None:
        """Fill the layer."""
        i, site = self.instruction, self.site
        lowers = () if i.link else site.store.lowers(self.state.top)
        writer = LayerWriter(lowers, draft.upper, site.now_ns, site.warn)
        manner = Manner(resolve_owner(writer.tree, i.chown) if i.chown else None, parse_mode(i.chmod) if i.chmod else None)
        with ExitStack() as opened:
            for number, found in enumerate(self.found):
                pieces = self._fetch(found, draft, number, opened) if isinstance(found, Remote) else found
                for piece in pieces:
                    if not (piece.unpack and _unpack(piece, writer, self.target, manner)):
                        writer.copy(piece.source, piece.match, self.target, into=self.into, manner=manner)
        for heredoc in i.heredocs:
            writer.write_file(self.target, heredoc.name, heredoc.content.encode(), into=self.into, manner=manner)
        writer.finish()

    def _fetch(self, remote: Remote, draft: Draft, number: int, opened: ExitStack) -> list[Piece]:
        """A remote source in a directory of the draft's, less what is excluded."""
        directory = draft.upper.parent / f"source-{number}"
        directory.mkdir(mode=0o755)
        opened.callback(remove_tree, directory)
        return narrowed(remote.fetch(directory, opened), patterns(self.instruction.excludes))


def _unpack(piece: Piece, writer: LayerWriter, target: str, manner: Manner) -> bool:
    """Unpack the piece when it is a tar archive, compressed or not; False when it is something else."""
    if not piece.match.entry.is_file:
        return False
    with os.fdopen(piece.source.open(piece.match.entry), "rb") as stream:
        try:
            from sandbox.build import archives  # with tarfile

            return archives.unpack(stream, writer, target, manner)
        except (BuildError, UnsafeLayer) as err:
            err.args = (f"{piece.match.name}: {err}",)
            raise


def copy_files(state: BuildState, i: ins.Copy, site: Site) -> Change:
    """COPY. With --from, what is remembered for the origin's chain id and the text spares looking at the files."""
    if i.origin is None:
        job = _job(state, i, site, _context(i, site))
        return Change(state, _history("COPY", i), (*_inputs(job), *job.digests()), make=job.make, linked=i.link)
    origin = site.origin(i.origin)
    job = _job(state, i, site, origin.source)
    if origin.chain_id is None:  # a directory of the host: like the context
        return Change(state, _history("COPY", i), (*_inputs(job), *job.digests()), make=job.make, linked=i.link)
    quick = (*_inputs(job), "from", origin.chain_id, *i.sources)
    return Change(state, _history("COPY", i), quick, lambda: (*_inputs(job), *job.digests()), job.make, linked=i.link)


def add_files(state: BuildState, i: ins.Add, site: Site) -> Change:
    """ADD from the context, from URLs and from git repositories."""
    check_flags(i, site)
    job = _job(state, i, site, _context(i, site))
    return Change(state, _history("ADD", i), (*_inputs(job), *job.digests()), make=job.make, linked=i.link)


def _context(i: ins.Files, site: Site) -> Source:
    if site.context is None and not all(map(is_remote, i.sources)):
        raise site.error("no build context to copy from", i, word=i.sources[0], hint="give a directory to build in")
    return site.context or TreeSource(Tree(()))  # a heredoc or a URL needs nothing of a context


def _job(state: BuildState, i: ins.Files, site: Site, source: Source) -> _Job:
    name = type(i).__name__.upper()
    if not i.destination or not all(i.sources):
        raise site.error(f"{name}: expected a path, got an empty one", i)
    into = i.destination.endswith("/") or i.destination in (".", "..") or i.destination.endswith(("/.", "/.."))
    if len(i.sources) + len(i.heredocs) > 1 and not into:
        message = f"{name}: expected a destination that ends with / for more than one source"
        raise site.error(message, i, word=i.destination, hint=f"write {i.destination}/")
    if i.chmod:
        parse_mode(i.chmod)
    if i.link and i.chown and not _NUMERIC.fullmatch(i.chown):
        hint = "with --link the files are copied into an empty file system, which has no /etc/passwd: write numbers"
        raise site.error(f"{name}: --chown={i.chown}: not a number", i, word=i.chown, hint=hint)
    return _Job(site, state, i, source, posixpath.join(state.workdir, i.destination), into)


def _inputs(job: _Job) -> tuple[str, ...]:
    """What decides beside the files."""
    i = job.instruction
    heredocs = [part for heredoc in i.heredocs for part in (heredoc.name, heredoc.content)]
    manner = (str(job.into), i.chown or "", i.chmod or "", str(len(i.heredocs)), *heredocs)
    flags = ("parents",) * (isinstance(i, ins.Copy) and i.parents) + ("link",) * i.link
    unpack = f"unpack={i.unpack}" if isinstance(i, ins.Add) else ""
    return (unpack or "copy", job.target, *manner, str(len(i.excludes)), *i.excludes, *flags)


def _history(name: str, i: ins.Files) -> str:
    parents = ["--parents"] if isinstance(i, ins.Copy) and i.parents else []
    flags = [f"--{flag}={value}" for flag, value in (("chown", i.chown), ("chmod", i.chmod)) if value]
    return " ".join([name, *parents, *flags, *i.sources, *(f"<<{heredoc.name}" for heredoc in i.heredocs), i.destination])


def _pieces(job: _Job, pattern: str) -> list[Piece]:
    """The files of the context, or of --from, that a source names."""
    i = job.instruction
    parents = isinstance(i, ins.Copy) and i.parents
    try:
        found = (select_parents if parents else select)(job.source, pattern, patterns(i.excludes))
    except BadPattern as err:
        raise job.site.error(str(err), i, word=pattern) from None
    except FileNotFoundError as err:
        raise BuildError(f"{str(err.filename).lstrip('/')}: {err.strerror}") from None
    if found or _is_there(job, pattern):
        return [replace(piece, unpack=job.unpacks) for piece in found]
    if has_wildcards(pattern):
        job.site.warn(f"{pattern}: matches nothing, nothing is copied")  # BuildKit lets it pass: `yarn.lock*` is a common idiom
        return []
    raise _missing(job, pattern)


def _is_there(job: _Job, pattern: str) -> bool:
    """Whether a named file is there and --exclude alone leaves it out."""
    return bool(job.instruction.excludes) and not has_wildcards(pattern) and bool(select(job.source, pattern, None))


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
    import difflib

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
    mode = 0 if kind == "l" else source.mode(entry)
    yield b"%b %o %d %d\0" % (kind.encode(), mode, *source.owner(entry))
    if kind == "-":
        yield memory.file_digest(status, lambda: source.open(entry))
    elif kind == "l":
        yield b"%b\0" % os.fsencode(source.readlink(entry))
    elif kind in "cb":
        yield b"%d\0" % status.st_rdev
    for name, value in sorted(source.xattrs(entry).items()):
        yield b"%b=%d:%b" % (os.fsencode(name), len(value), value)
