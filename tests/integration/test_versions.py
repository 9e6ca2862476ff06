"""Another checkpoint under a name of a user's own, in a running service, and the earlier one again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from ase import Atoms

from exporters.export import EXPORTED, UP_TO_DATE
from exporters.own import OwnCheckpoint
from forcefields.catalogue import load
from forcegate.client import Client
from tests.integration.test_export import KRYPTON, exporter, start
from tests.service import ROOT, RunningService, serving, wait_until


def energy_of(service: RunningService) -> tuple[float, str]:
    """Energy in eV of a dimer of krypton, and the checkpoint that it came from."""
    dimer = Atoms("Kr2", positions=[[0, 0, 0], [0, 0, 4.0]])
    with Client(service.url) as client:
        answer = client.single_point(dimer, "mine")
    return answer["energy"], answer["provenance"]["checkpoint_sha256"]


def test_a_bad_new_checkpoint_is_put_back_by_one_command_in_a_running_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    for name, value in {"STATE": state, "ROOT": ROOT, "THREADS": 1}.items():
        monkeypatch.setenv(f"FORCEGATE_{name}", str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    good, other, none = (tmp_path / name for name in ("good.json", "other.json", "none.json"))
    good.write_text(json.dumps(KRYPTON))
    other.write_text(json.dumps(KRYPTON | {"epsilon_eV": 2 * KRYPTON["epsilon_eV"]}))  # type: ignore[operator]
    none.write_text("not JSON")
    named = ("--as", "mine", "--family", "lennard_jones")
    first = OwnCheckpoint(good, "mine", family="lennard_jones")
    assert exporter(state).export_own(first).status == EXPORTED
    with serving(state, ["mine"], workers=0) as service:
        before = energy_of(service)
        # One that cannot be used changes nothing.
        failed = start("--file", str(none), *named, "--replace")
        assert failed.wait(120) == 1
        assert energy_of(service) == before
        assert exporter(state).export_own(first).status == UP_TO_DATE

        done = start("--file", str(other), *named, "--replace")
        _, errors = done.communicate(timeout=120)
        assert done.returncode == 0, errors
        assert "The running service loads it now" in errors
        wait_until(lambda: energy_of(service)[1] != before[1], "the new checkpoint is not served", 60)
        assert energy_of(service)[0] == pytest.approx(2 * before[0], abs=1e-9)

        back = start("--rollback", "mine")
        _, errors = back.communicate(timeout=60)
        assert back.returncode == 0, errors
        wait_until(lambda: energy_of(service) == before, "the earlier checkpoint is not served", 60)
    assert exporter(state).export_own(first).status == UP_TO_DATE, "gate and golden energies came back with it"
    again = start("--rollback", "mine")
    assert again.wait(60) == 0
    assert load().resolve("mine").checkpoint.sha256 == hashlib.sha256(other.read_bytes()).hexdigest(), "it undoes itself"
    nothing = start("--rollback", "yours")
    assert "There is no earlier checkpoint of 'yours'" in nothing.communicate(timeout=60)[1]
