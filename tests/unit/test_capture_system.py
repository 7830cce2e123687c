"""The parts that are not Python: certificates without keys, /etc without this host, tools with their interpreters."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sandbox.image import capture_system as system
from sandbox.image.capture_plan import Plan

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n"
KEY = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"


def test_certificates_come_without_keys_and_comments(tmp_path: Path) -> None:
    (tmp_path / "bundle.pem").write_text(f"# made by alice\n{CERTIFICATE}{KEY}subject=alice\n{CERTIFICATE.replace('TUlJ', 'QUJD')}")
    found = system.certificates(str(tmp_path / "bundle.pem")).decode()
    assert found == CERTIFICATE + CERTIFICATE.replace("TUlJ", "QUJD")


def test_the_first_bundle_with_certificates_wins_and_else_the_directory(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    (tmp_path / "hashed").mkdir()
    for name, text in (("1.0", CERTIFICATE), ("2.0", CERTIFICATE), ("3.pem", CERTIFICATE.replace("TUlJ", "QUJD")), ("key.key", KEY)):
        (tmp_path / "hashed" / name).write_text(text)
    files = (str(tmp_path / "gone"), str(tmp_path / "empty.pem"))
    assert system.read_authorities(files, "").decode() == ""
    assert system.read_authorities(files, str(tmp_path / "hashed")).decode().count("BEGIN") == 2
    (tmp_path / "real.pem").write_text(CERTIFICATE)
    assert system.read_authorities((*files, str(tmp_path / "real.pem")), str(tmp_path / "hashed")).decode() == CERTIFICATE


def test_openssls_path_leads_to_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text(CERTIFICATE)
    plan = Plan()
    assert system.plan_certificates(plan, str(tmp_path / "cert.pem"), "", "/usr/local/ssl/cert.pem")
    assert plan.entries[system.CA_BUNDLE].content.decode() == CERTIFICATE
    assert plan.resolve("/usr/local/ssl/cert.pem") == system.CA_BUNDLE


def test_openssls_configuration_comes_without_pins(tmp_path: Path) -> None:
    (tmp_path / "openssl.cnf").write_text("MinProtocol = TLSv1.2\nPIN = 1234\ninput_password = secret\nCipherString = DEFAULT\n")
    plan = Plan()
    system.plan_openssl(plan, str(tmp_path), "/usr/lib/ssl")
    assert plan.entries["/usr/lib/ssl/openssl.cnf"].content == b"MinProtocol = TLSv1.2\nCipherString = DEFAULT\n"


def test_the_base_knows_root_and_nobody_only_and_not_this_host() -> None:
    plan = Plan()
    system.plan_base(plan)
    users = [line.split(":")[0] for line in plan.entries["/etc/passwd"].content.decode().splitlines()]
    assert users == ["root", "nobody"]
    assert plan.entries["/etc/hostname"].content == b""
    # One exception: a host may well be called localhost.
    host = socket.gethostname()
    assert host == "localhost" or not [
        path for path, entry in plan.entries.items() if path != "/etc/os-release" and f" {host}\n".encode() in entry.content
    ]
    assert plan.entries["/tmp"].mode == 0o1777
    assert plan.entries["/root"].mode == 0o700


def test_the_release_file_keeps_what_programs_ask_for(tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text('ID=debian\nPRETTY_NAME="Debian 12"\nMACHINE_OWNER=alice\nVERSION_ID=12\n')
    text = system._release((str(tmp_path / "gone"), str(tmp_path / "os-release")))
    assert text == 'ID=debian\nPRETTY_NAME="Debian 12"\nVERSION_ID=12\n'


def test_tools_bring_the_interpreter_of_their_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "which").write_text("#!/usr/bin/env myshell\n")
    (bin_ / "myshell").write_text("x")
    monkeypatch.setattr(system, "TOOL_DIRECTORIES", (str(bin_),))
    plan = Plan()
    assert system.plan_tools(plan) == [f"{bin_}/which", f"{bin_}/myshell"]


def test_tools_that_are_links_to_one_program_stay_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "busybox").write_text("x")
    for name in ("sh", "ls", "cat"):
        (bin_ / name).symlink_to("busybox")
    monkeypatch.setattr(system, "TOOL_DIRECTORIES", (str(bin_),))
    plan = Plan()
    system.plan_tools(plan)
    kinds = {path.rpartition("/")[2]: entry.kind for path, entry in plan.entries.items() if path.startswith(f"{bin_}/")}
    assert kinds == {"busybox": "file", "sh": "link", "ls": "link", "cat": "link"}


def test_tools_are_not_looked_up_along_the_users_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ls").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "ls").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not [path for path in system.plan_tools(Plan()) if path.startswith(str(tmp_path))]
