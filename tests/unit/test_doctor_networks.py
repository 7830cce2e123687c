"""A probe of the doctor's that does not come back is a row, and no traceback."""

from __future__ import annotations

import pytest

from sandbox import doctor_networks


def test_probes_without_an_answer_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_networks, "_LONGEST", 0.001)
    found = [row for row in doctor_networks.rows() if row[2].startswith("no answer within")]
    assert [(row[0], row[1]) for row in found] == [(name, False) for name in ("network bridge", "allow-list", "network rate")]
