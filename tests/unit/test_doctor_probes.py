"""Probes of the doctor's that do not come back are rows, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox import doctor, doctor_networks


def test_probes_without_an_answer_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_networks, "_LONGEST", 0.001)
    found = [row for row in doctor_networks.rows() if row[2].startswith("no answer within")]
    assert [(row[0], row[1]) for row in found] == [(name, False) for name in ("network bridge", "allow-list", "network rate")]


def test_a_probe_of_this_host_without_an_answer_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_LONGEST", 0.001)
    found = doctor._try(doctor._PROBES[0], tmp_path)
    assert (found.ok, found.detail) == (False, "no answer within 0 s")
    assert list(tmp_path.iterdir()) == []
