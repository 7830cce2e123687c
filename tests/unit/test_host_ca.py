"""Which certificate authorities are this host's own, what a bundle has, and what a program's environment says. Nothing is mounted."""

from __future__ import annotations

from pathlib import Path

from sandbox.runtime import host_ca


def pem(text: str, width: int = 64) -> str:
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


CAMPUS, PUBLIC, NAMED = "Q0FNUFVT" * 20, "UFVCTElD" * 20, "TkFNRUQ=" * 20


def test_the_administrators_and_the_environments_are_added(tmp_path: Path) -> None:
    place = tmp_path / "usr/local/share/ca-certificates/campus"
    place.mkdir(parents=True)
    (place / "one.crt").write_text(f"Campus CA\n{pem(CAMPUS)}")
    (place / "readme.txt").write_text(pem(PUBLIC))
    (tmp_path / "named.pem").write_text(pem(NAMED) + pem(CAMPUS, 76))
    assert host_ca.added({}, tmp_path) == (CAMPUS.encode(),)
    assert host_ca.added({"SSL_CERT_FILE": str(tmp_path / "named.pem")}, tmp_path) == (CAMPUS.encode(), NAMED.encode())
    assert host_ca.added({"SSL_CERT_FILE": "/nowhere"}, tmp_path / "elsewhere") == ()


def test_a_bundle_has_each_once_and_is_made_once(tmp_path: Path) -> None:
    place = host_ca.deliver(tmp_path, pem(PUBLIC, 76).encode(), [CAMPUS.encode(), PUBLIC.encode()])
    assert (place / "bundle.pem").read_text() == pem(PUBLIC) + pem(CAMPUS)
    assert "bundle.pem" in (place / "apt.conf").read_text()
    before = place.stat()
    assert host_ca.deliver(tmp_path, pem(PUBLIC).encode(), [CAMPUS.encode()]) == place
    assert place.stat().st_ino == before.st_ino
    assert [each.name for each in (tmp_path / "host-ca").iterdir()] == [place.name]


def test_a_variable_that_names_the_distributions_file_gives_way() -> None:
    env = host_ca.with_variables({"SSL_CERT_FILE": host_ca.PLACES[0], "PIP_CERT": "/mine.pem", "HOME": host_ca.PLACES[0]})
    assert (env["SSL_CERT_FILE"], env["PIP_CERT"], env["HOME"]) == ("/dev/host-ca/bundle.pem", "/mine.pem", host_ca.PLACES[0])
    assert host_ca.is_ours(env["CURL_CA_BUNDLE"])
    assert not host_ca.is_ours("/dev/host-car")
