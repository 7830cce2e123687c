"""Looking for images in a registry: Docker Hub's search (v1), which few others offer, else the list of all repositories (`_catalog`)."""

from __future__ import annotations

import urllib.parse

import msgspec

from sandbox.errors import InvalidOption, NotInRegistry, RegistryError, Unauthorized
from sandbox.image.reference import DEFAULT_REGISTRY, Reference
from sandbox.image.registry.access import Access
from sandbox.image.registry.wire import Request

_HUB_SEARCH = "https://index.docker.io"
_LIMIT = 4 << 20
_MOST = 100


class Found(msgspec.Struct, frozen=True):
    """One repository. What a registry does not tell is empty."""

    name: str
    description: str = ""
    stars: int = 0
    official: bool = False


class _Result(msgspec.Struct):
    name: str = ""
    description: str | None = None
    star_count: int = 0
    is_official: bool = False


class _Results(msgspec.Struct):
    results: list[_Result] = []


_RESULTS = msgspec.json.Decoder(_Results)


def search(access: Access, term: str, limit: int) -> list[Found]:
    """Repositories whose name or description has the term: of Docker Hub, or of HOST when the term is `HOST/TERM` (`HOST/` alone:
    all). RegistryError that says so when the registry offers no search."""
    if not 1 <= limit <= _MOST:
        raise InvalidOption(f"--limit {limit}: from 1 to {_MOST}")
    host, words = _split(term)
    if host == DEFAULT_REGISTRY:
        return _search(access, _HUB_SEARCH, "", words, limit) or []
    connection = access.registry(host).connection
    connection.hello()
    found = _search(access, connection.authorizer.url, f"{host}/", words, limit, verify=connection.authorizer.verify)
    return found if found is not None else _listed(access, host, words, limit)


def _split(term: str) -> tuple[str, str]:
    """The registry and what is looked for in it."""
    first, slash, rest = term.partition("/")
    is_host = bool(slash) and (first == "localhost" or "." in first or ":" in first)
    host, words = (first, rest) if is_host else (DEFAULT_REGISTRY, term)
    if host == DEFAULT_REGISTRY and not words:
        raise InvalidOption(f"{term!r}: nothing to look for")
    return host, words


def _search(access: Access, url: str, prefix: str, words: str, limit: int, *, verify: bool = True) -> list[Found] | None:
    """None: this registry has no search."""
    query = urllib.parse.urlencode({"q": words, "n": limit})
    answer = access.wire.send(Request("GET", f"{url}/v1/search?{query}"), verify=verify)
    if answer.status != 200:
        answer.close()
        if url == _HUB_SEARCH:
            raise RegistryError(f"{DEFAULT_REGISTRY}: search answers {answer.status}")
        return None
    try:
        results = _RESULTS.decode(answer.read_all(_LIMIT, "search")).results
    except msgspec.DecodeError:
        return None
    finally:
        answer.done()
    found = [Found(prefix + each.name, each.description or "", each.star_count, each.is_official) for each in results if each.name]
    return found[:limit]


def _listed(access: Access, host: str, words: str, limit: int) -> list[Found]:
    try:
        names = access.registry(host).repositories()
    except (NotInRegistry, Unauthorized) as err:
        hint = f"`sandbox search --list-tags {host}/NAME` lists the tags of a repository whose name you know"
        raise RegistryError(f"{host}: offers no search, and does not tell what it has", hint=hint) from err
    return [Found(f"{host}/{name}") for name in sorted(names) if words.lower() in name.lower()][:limit]


def tags(access: Access, name: str) -> list[str]:
    """Every tag of a repository, sorted. NotInRegistry, RegistryError."""
    return sorted(access.sources(Reference.parse(name))[-1].tags())
