"""registries.conf, platforms, proxies: which server a name means, which image of an index, and by which way."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import InvalidOption, NotInRegistry, RegistryError
from sandbox.image.proxies import proxy_for
from sandbox.image.reference import Reference
from sandbox.image.registry.hosts import RegistriesConf
from sandbox.image.registry.platforms import choose, parse_platform, platform_text
from sandbox.oci import INDEX_TYPE, MANIFEST_TYPE, Descriptor

PLAIN = {
    ("registry.example/a", None): False,
    ("registry.example/a", True): True,
    ("192.0.2.7:5000/a", None): False,
    ("localhost:5000/a", None): True,
    ("127.0.0.1:5000/a", None): True,
    ("127.0.0.1.registry.example/a", None): False,
    ("[::1]:5000/a", None): True,
}
DIGEST = "sha256:" + "a" * 64


def _conf(tmp_path: Path, text: str) -> RegistriesConf:
    (tmp_path / "registries.conf").write_text(text)
    return RegistriesConf.read({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf")}, tmp_path)


def _sources(conf: RegistriesConf, name: str, *, insecure: bool | None = None) -> list[str]:
    found = conf.sources(Reference.parse(name), insecure=insecure)
    return [f"{endpoint.host}/{endpoint.repository}{' insecure' if endpoint.insecure else ''}" for endpoint in found]


@pytest.mark.parametrize(("name", "insecure"), list(PLAIN))
def test_http_without_tls_is_for_loopback_or_when_asked_for(tmp_path: Path, name: str, *, insecure: bool | None) -> None:
    conf = _conf(tmp_path, "")
    for endpoint in (*conf.sources(Reference.parse(name), insecure=insecure), conf.destination(Reference.parse(name), insecure=insecure)):
        assert endpoint.may_be_plain == PLAIN[name, insecure]


CONF = """
unqualified-search-registries = ["elsewhere.example"]
[[registry]]
prefix = "docker.io"
location = "hub.example/proxied"
[[registry.mirror]]
location = "near.example/hub"
insecure = true
[[registry]]
prefix = "docker.io/team"
location = "team.example"
[[registry]]
location = "plain.example:5000"
insecure = true
[[registry]]
prefix = "*.cluster.example"
[[registry]]
location = "digests.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "mirror.example/d"
[[registry]]
location = "tags.example"
[[registry.mirror]]
location = "mirror.example/t"
pull-from-mirror = "tag-only"
[[registry]]
prefix = "docker.io/team/one:3"
blocked = true
"""

MEANT = {
    "busybox": ["near.example/hub/library/busybox insecure", "hub.example/proxied/library/busybox"],
    "team/app": ["team.example/app"],
    "teams/app": ["near.example/hub/teams/app insecure", "hub.example/proxied/teams/app"],
    "plain.example:5000/a/b": ["plain.example:5000/a/b insecure"],
    "plain.example/a": ["plain.example/a"],
    "x.cluster.example/a": ["x.cluster.example/a"],
    "digests.example/a:1": ["digests.example/a"],
    f"digests.example/a@{DIGEST}": ["mirror.example/d/a", "digests.example/a"],
    "tags.example/a:1": ["mirror.example/t/a", "tags.example/a"],
    f"tags.example/a@{DIGEST}": ["tags.example/a"],
    "quay.io/a/b": ["quay.io/a/b"],
}


@pytest.mark.parametrize("name", MEANT)
def test_a_name_means_these_servers(tmp_path: Path, name: str) -> None:
    assert _sources(_conf(tmp_path, CONF), name) == MEANT[name]


def test_without_a_file_a_name_means_its_own_registry(tmp_path: Path) -> None:
    conf = RegistriesConf.read({"XDG_CONFIG_HOME": str(tmp_path)}, tmp_path)
    assert _sources(conf, "quay.io/a/b") == ["quay.io/a/b"]
    assert conf.destination(Reference.parse("python:3.11-slim")).host == "registry-1.docker.io"


def test_the_flag_counts_more_than_the_file_and_not_for_mirrors(tmp_path: Path) -> None:
    conf = _conf(tmp_path, CONF)
    assert _sources(conf, "plain.example:5000/a", insecure=False) == ["plain.example:5000/a"]
    assert _sources(conf, "busybox", insecure=False)[0].endswith("insecure")
    assert _sources(conf, "tags.example/a:1", insecure=True) == ["mirror.example/t/a", "tags.example/a insecure"]


def test_what_is_blocked_is_neither_pulled_nor_pushed(tmp_path: Path) -> None:
    conf = _conf(tmp_path, CONF)
    for ask in (conf.sources, conf.destination):
        with pytest.raises(RegistryError, match="blocked"):
            ask(Reference.parse("team/one:3"))
    assert _sources(conf, "team/one:4") == ["team.example/one"]


def test_a_push_goes_to_no_mirror(tmp_path: Path) -> None:
    assert _conf(tmp_path, CONF).destination(Reference.parse("busybox")).host == "hub.example"


def test_parts_in_a_directory_add_to_the_file(tmp_path: Path) -> None:
    parts = tmp_path / "containers/registries.conf.d"
    parts.mkdir(parents=True)
    (tmp_path / "containers/registries.conf").write_text('[[registry]]\nlocation = "a.example"\nblocked = true\n')
    (parts / "1.conf").write_text('[[registry]]\nlocation = "a.example"\n[[registry]]\nlocation = "b.example"\nblocked = true\n')
    conf = RegistriesConf.read({"XDG_CONFIG_HOME": str(tmp_path)}, tmp_path)
    assert _sources(conf, "a.example/x") == ["a.example/x"], "the part is read later"
    with pytest.raises(RegistryError, match="blocked"):
        conf.sources(Reference.parse("b.example/x"))


@pytest.mark.parametrize("text", ["[[registry]\n", '[[registry]]\nblocked = "perhaps"\n', '[[registry.mirror]]\npull-from-mirror = 3\n'])
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidOption, match=r"registries\.conf"):
        _conf(tmp_path, text)


# Platforms


def _index(*platforms: str | None) -> list[Descriptor]:
    return [
        Descriptor(MANIFEST_TYPE, f"sha256:{number:064x}", number, platform=parse_platform(text) if text else None)
        for number, text in enumerate(platforms)
    ]


CHOICES = [
    ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
    ("linux/amd64", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], 2),  # a newer processor's is for who names it
    ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),  # the nearest older one
    ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], 1),
    ("linux/arm/v7", ["linux/arm", "linux/arm/v6"], 0),  # none said: v7
    ("linux/arm64", ["linux/arm/v8", "linux/arm64/v8"], 1),
    ("linux/arm64/v9", ["linux/arm64"], 0),
    ("armhf", ["linux/arm/v6", "linux/arm/v7"], 1),
    ("aarch64", ["linux/amd64", "linux/arm64"], 1),
    ("linux/s390x", [None, "linux/s390x"], 1),
    ("linux/s390x", ["linux/amd64", None], 1),
    ("linux/amd64", ["linux/amd64", "linux/amd64"], 0),
]


@pytest.mark.parametrize(("wanted", "offered", "chosen"), CHOICES)
def test_the_best_image_of_an_index(wanted: str, offered: list[str | None], chosen: int) -> None:
    manifests = _index(*offered)
    assert choose(manifests, parse_platform(wanted), "app") is manifests[chosen]


@pytest.mark.parametrize(
    ("wanted", "offered"), [("linux/arm/v6", ["linux/arm/v7"]), ("linux/amd64", ["linux/amd64/v3"]), ("linux/386", [])]
)
def test_what_would_not_run_is_not_chosen(wanted: str, offered: list[str | None]) -> None:
    with pytest.raises(NotInRegistry, match=f"no image for {wanted}"):
        choose(_index(*offered), parse_platform(wanted), "app")


def test_what_is_no_image_is_passed_over() -> None:
    strange = Descriptor("application/vnd.example", DIGEST, 1, platform=parse_platform("linux/amd64"))
    provenance = Descriptor(MANIFEST_TYPE, DIGEST, 1, platform=parse_platform("unknown/unknown"))
    inner = Descriptor(INDEX_TYPE, DIGEST, 2, platform=parse_platform("linux/amd64"))
    assert choose([strange, provenance, inner], parse_platform("linux/amd64"), "app") is inner


@pytest.mark.parametrize("text", ["", "linux/", "a/b/c/d", "linux/amd 64", "../x"])
def test_a_platform_that_is_none(text: str) -> None:
    with pytest.raises(InvalidOption, match="platform"):
        parse_platform(text)


def test_a_platform_is_written_as_it_is_read() -> None:
    assert [platform_text(parse_platform(text)) for text in ("linux/arm64/v8", "x86_64", "armel")] == [
        "linux/arm64/v8", "linux/amd64", "linux/arm/v6",
    ]  # fmt: skip


# Proxies

ENVIRONS: list[tuple[str, dict[str, str], str | None]] = [
    ("https://a.example/x", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
    ("https://a.example/x", {"https_proxy": "http://q:1", "HTTPS_PROXY": "http://p:1"}, "http://q:1"),
    ("https://a.example/x", {"http_proxy": "http://p:1"}, None),
    ("http://a.example/x", {"http_proxy": "http://p:1"}, "http://p:1"),
    ("http://a.example/x", {"HTTP_PROXY": "http://p:1"}, None),  # a client of a CGI could have set it
    ("https://a.example/x", {"ALL_PROXY": "http://p:1"}, "http://p:1"),
    ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "b.example, a.example"}, None),
    ("https://a.example:5000/x", {"HTTPS_PROXY": "http://p:1", "no_proxy": ".example"}, None),
    ("https://aa.example/x", {"HTTPS_PROXY": "http://p:1", "no_proxy": "a.example"}, "http://p:1"),
    ("https://a.example/x", {"HTTPS_PROXY": "http://p:1", "no_proxy": "*"}, None),
    ("https://a.example/x", {"HTTPS_PROXY": "", "no_proxy": ","}, None),
]


@pytest.mark.parametrize(("url", "environ", "expected"), ENVIRONS)
def test_a_proxy_is_what_the_environment_says(url: str, environ: dict[str, str], expected: str | None) -> None:
    assert proxy_for(url, environ) == expected
