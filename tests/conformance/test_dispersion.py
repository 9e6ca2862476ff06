"""D3(BJ): equal to the library called directly; added where the policy allows it, refused where it would be wrong."""

from __future__ import annotations

import json
import subprocess

import httpx
import numpy as np
import pytest
from ase import Atoms

from forcefields.catalogue import load
from forcegate import ForcegateCalculator
from forcegate.errors import DispersionNotSupported
from forcegate.evaluation import evaluate
from forcegate.structure import from_atoms, to_mapping
from tests.conformance import cases
from tests.service import ROOT, RunningService

STRUCTURES = {"salt": cases.salt, "water": cases.water, "slab": cases.slab, "left-handed": cases.left_handed}
IMAGES = 2e-6
"""eV and eV/A. A molecule's box ends beyond the sum's 60 Bohr, so what is left is the library's counting of coordination."""


def library(functional: str, structures: list[Atoms]) -> list[dict[str, np.ndarray | float | None]]:
    """What the library says by itself."""
    described = [
        {"numbers": a.numbers.tolist(), "positions": a.positions.tolist(), "cell": a.cell.tolist(), "pbc": a.pbc.tolist()}
        for a in structures
    ]
    done = subprocess.run(
        [ROOT / "environments" / "dftd3" / "bin" / "python", "-m", "tests.conformance.dispersion_reference"],
        input=json.dumps({"functional": functional, "structures": described}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return list(json.loads(done.stdout))


def test_equal_to_the_library(service: RunningService) -> None:
    structures = [make() for make in STRUCTURES.values()]
    served = evaluate(structures, "d3bj-pbe", address=service.grpc)
    for name, atoms, ours, theirs in zip(STRUCTURES, structures, served, library("pbe", structures), strict=True):
        tolerance = 1e-9 if atoms.pbc.all() else IMAGES
        assert ours.energy == pytest.approx(theirs["energy"], abs=tolerance), name
        assert ours.forces == pytest.approx(np.array(theirs["forces"]), abs=tolerance), name
        if atoms.pbc.all():
            stress = np.array(theirs["stress"])
            assert ours.stress is not None
            assert ours.stress == pytest.approx(stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], abs=1e-10), name
        assert abs(ours.energy or 0) > 1e-3, "a correction of nothing would equal anything"


def test_every_damping_is_the_library_s() -> None:
    """The parameters in our files against the library's own, through the energy of one structure."""
    salt = cases.salt()
    catalogue = load()
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from forcefields import catalogue\n"
        "from forcefields.runtime import loading\n"
        "from forcefields.runtime.engine import Engine\n"
        "from forcegate.structure import from_atoms\n"
        "from tests.conformance import cases\n"
        "families = catalogue.load()\n"
        "found = {}\n"
        "for variant in families.families['dftd3'].variants:\n"
        "    path = families.families['dftd3'].folder / variant.checkpoint.path\n"
        "    engine = Engine(loading.load(families, variant, path, 'cpu'), variant, loading.limits(variant, 1000, 1))\n"
        "    found[variant.name] = engine.evaluate([from_atoms(cases.salt())])[0].result.energy\n"
        "print(json.dumps(found))\n"
    )
    python = ROOT / "environments" / "dftd3" / "bin" / "python"
    done = subprocess.run([python, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    ours = json.loads(done.stdout)
    assert set(ours) == {variant.name for variant in catalogue.families["dftd3"].variants}
    assert len({round(energy, 6) for energy in ours.values()}) == len(ours), "each functional has its own"
    for name, energy in ours.items():
        (theirs,) = library(name.removeprefix("d3bj-"), [salt])
        assert energy == pytest.approx(theirs["energy"], abs=1e-7), name


def test_the_calculator_adds_it(service: RunningService) -> None:
    salt = cases.salt()
    plain = ForcegateCalculator("chgnet-0.3.0", address=service.grpc)
    corrected = ForcegateCalculator("chgnet-0.3.0", address=service.grpc, dispersion="d3bj")
    (d3,) = evaluate([salt], "d3bj-pbe", address=service.grpc)
    for quantity, part in (("energy", d3.energy), ("forces", d3.forces), ("stress", d3.stress)):
        difference = corrected.get_property(quantity, salt) - plain.get_property(quantity, salt)
        assert difference == pytest.approx(part, abs=2e-5), quantity  # float32 of the force field
    assert corrected.provenance["dispersion"] == "d3bj-pbe"
    assert plain.provenance["dispersion"] == "none"


def test_evaluate_adds_it(service: RunningService) -> None:
    structures = [cases.salt(), cases.slab(), cases.salt()]
    plain, corrected = (evaluate(structures, "chgnet-0.3.0", address=service.grpc, dispersion=asked) for asked in ("none", "d3bj"))
    for one, both, d3 in zip(plain, corrected, evaluate(structures, "d3bj-pbe", address=service.grpc), strict=True):
        assert both.energy - one.energy == pytest.approx(d3.energy, abs=2e-5)  # float32 of the force field
        assert both.forces - one.forces == pytest.approx(d3.forces, abs=2e-5)
        assert (both.stress is None) == (d3.stress is None)
        if both.stress is not None:
            assert both.stress - one.stress == pytest.approx(d3.stress, abs=2e-5)
        assert (one.provenance["dispersion"], both.provenance["dispersion"]) == ("none", "d3bj-pbe")


def test_rest_adds_it_and_says_so(service: RunningService) -> None:
    salt = cases.salt()
    (d3,) = evaluate([salt], "d3bj-pbe", address=service.grpc)
    body = {"model_name": "chgnet-0.3.0", "atoms": to_mapping(from_atoms(salt))}
    plain = httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=60).json()
    assert plain["provenance"]["dispersion"] == "none"
    for asked in ({"dispersion": "d3bj"}, {"use_d3": True}):
        answer = httpx.post(f"{service.url}/api/v1/single_point", json=body | asked, timeout=60)
        assert answer.status_code == 200, answer.text
        corrected = answer.json()
        assert corrected["energy"] - plain["energy"] == pytest.approx(d3.energy, abs=2e-5)
        assert np.array(corrected["forces"]) - np.array(plain["forces"]) == pytest.approx(d3.forces, abs=2e-5)
        assert np.array(corrected["stress"]) - np.array(plain["stress"]) == pytest.approx(d3.stress, abs=2e-5)
        assert corrected["provenance"]["dispersion"] == "d3bj-pbe"
    batch = {"model_name": "chgnet-0.3.0", "atoms": [body["atoms"]] * 2, "dispersion": "d3bj"}
    results = httpx.post(f"{service.url}/api/v1/batch", json=batch, timeout=60).json()["results"]
    assert [r["energy"] - plain["energy"] for r in results] == pytest.approx([d3.energy] * 2, abs=2e-5)


def test_where_it_would_be_wrong_it_is_refused(service: RunningService) -> None:
    argon = Atoms("Ar2", positions=[[0, 0, 0], [3.8, 0, 0]])
    with pytest.raises(DispersionNotSupported, match="twice"):
        ForcegateCalculator("lj-argon", address=service.grpc, dispersion="d3bj").get_potential_energy(argon)
    body = {"model_name": "lj-argon", "atoms": to_mapping(from_atoms(argon)), "use_d3": True}
    answer = httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (422, "dispersion_not_supported")


def test_the_head_decides_which_damping(service: RunningService) -> None:
    calculator = ForcegateCalculator("sevennet-mf-0", address=service.grpc, head="R2SCAN", dispersion="d3bj")
    assert calculator.provenance["dispersion"] == "d3bj-r2scan"
