"""Every family side by side in one server, each in its own environment, which could not be one."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from ase import Atoms
from ase.build import bulk

from forcefields.catalogue import load
from forcegate.evaluation import evaluate
from tests.service import ROOT, RunningService, serving

SERVED = {
    "chgnet": "chgnet-0.3.0",
    "dftd3": "d3bj-pbe",
    "fairchem": "tiny-uma",
    "grace": "tiny-grace-1l",
    "lennard_jones": "lj-argon",
    "mace": "tiny-mace",
    "matgl": "tiny-matgl-tensornet",
    "mattersim": "tiny-mattersim",
    "orb": "tiny-orb-conservative",
    "sevennet": "sevennet-0",
}

pytestmark = pytest.mark.timeout(1500)  # one model of each family, with the whole gate, beside another process of tests


def structure(model: str) -> Atoms:
    """A displaced crystal of an element that the model knows."""
    known = set(load().resolve(model).elements)
    atoms = bulk("Cu", cubic=True) if 29 in known else bulk("Ar", a=5.26, cubic=True)
    atoms.rattle(0.05, seed=7)
    return atoms


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service with a model of each family."""
    with serving(tmp_path_factory.mktemp("everything"), tuple(SERVED.values()), timeout=1200) as running:
        yield running


def test_no_family_is_forgotten() -> None:
    assert set(SERVED) == set(load().families)


def test_every_family_answers_in_one_server(everything: RunningService) -> None:
    listed = httpx.get(f"{everything.url}/health", timeout=10).json()["workers"]
    assert {name for name, worker in listed.items() if worker["status"] == "healthy"} >= set(SERVED)
    resident = {}
    for model in SERVED.values():
        atoms = structure(model)
        results = evaluate([atoms] * 3, model, address=everything.grpc, timeout=120)
        energies = [result.energy for result in results]
        assert np.ptp(energies) / len(atoms) < 1e-5
        forces = results[0].forces
        assert forces is not None
        assert 1e-4 < np.abs(forces).max() < 100, f"{model}: {np.abs(forces).max()} eV/A"
        assert np.abs(forces.sum(axis=0)).max() < 1e-3, f"{model}: the forces of a crystal add up to nothing"
        resident[model] = psutil.Process(everything.stub(model).pid).memory_info().rss / 2**20
    report = ROOT / "var" / "families.json"
    report.parent.mkdir(exist_ok=True)
    seconds = {m: json.loads((everything.state / "reports" / f"{m}.json").read_text())["seconds"] for m in SERVED.values()}
    report.write_text(json.dumps({"resident_mb": resident, "load_seconds": seconds}, indent=2))
    assert sum(resident.values()) < 16_000


def test_tiny_checkpoints_are_not_shown_among_the_real_ones(everything: RunningService) -> None:
    listed = {m["name"]: m for m in httpx.get(f"{everything.url}/api/v1/models", timeout=10).json()["models"]}
    loaded = {name for name, model in listed.items() if model["state"] == "ready"}
    assert loaded >= set(SERVED.values()), "what is loaded is shown"
    assert not {name for name in listed if name.startswith("tiny-")} - loaded, "what is not loaded, and tiny, is not"


def test_the_environments_could_not_be_one() -> None:
    """MACE pins e3nn 0.4.4, SevenNet needs 0.5 or later: no Python holds both."""
    found = {name: version(name, "e3nn") for name in ("mace", "sevennet")}
    assert found["mace"] == "0.4.4"
    assert tuple(int(part) for part in found["sevennet"].split(".")[:2]) >= (0, 5)


def version(environment: str, package: str) -> str:
    python: Path = ROOT / "environments" / environment / "bin" / "python"
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
