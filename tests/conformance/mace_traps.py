"""``environments/mace/bin/python -m tests.conformance.mace_traps FOLDER``: heads, precision, charge, spin and range of MACE.

Prints, as JSON, one number for each trap; FOLDER has the tiny checkpoints that ``tests.conformance.tiny`` made.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ase import Atoms

from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.runtime import loading
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.verification import sha256
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.packages.mace import calculator

HEADS = ("omat_pbe", "matpes_r2scan")


def main() -> None:
    """Springs every trap."""
    folder = Path(sys.argv[1])
    found = heads(folder) | precision(folder) | charge(folder) | polar(folder) | disagreements(folder)
    print(json.dumps(found))  # noqa: T201


def served(folder: Path, name: str, **changed: Any) -> Engine:
    """The runtime around a tiny checkpoint, its catalogue entry changed."""
    families = catalogue.load()
    variant: Variant = families.resolve(name)
    path = folder / name / variant.checkpoint.file
    variant = replace(variant, checkpoint=replace(variant.checkpoint, sha256=sha256(path)), **changed)
    return Engine(loading.load(families, variant, path, "cpu"), variant, loading.limits(variant, 50_000, 0))


def answers(engine: Engine, structures: Sequence[tuple[Atoms, str]], outputs: frozenset[str] = DEFAULT_OUTPUTS) -> list[Any]:
    """The results of structures, each with its own head, in one batch; a code where one is refused."""
    jobs = [Job(from_atoms(atoms), head, outputs) for atoms, head in structures]
    engine.run(jobs)
    return [job.result or (job.error.code if job.error else "") for job in jobs]


def deviation(result: Any, reference: Any, atoms: Atoms) -> float:
    """The largest of the deviations in energy per atom (eV) and forces (eV/A)."""
    reference.calculate(atoms)
    energy = abs(result.energy - reference.results["energy"]) / len(atoms)
    return max(float(energy), float(np.abs(result.forces - reference.results["forces"]).max()))


def heads(folder: Path) -> dict[str, float]:
    """Requests with different heads in one pass, each against the package with that head."""
    engine = served(folder, "tiny-mace-multihead")
    structures = [(atoms, head) for atoms in (cases.perovskite(), cases.water(), cases.slab()) for head in (*HEADS, "")]
    results = answers(engine, structures)
    packages = {head: calculator("tiny-mace-multihead", head, folder / "tiny-mace-multihead" / "tiny.model") for head in HEADS}
    worst = max(
        deviation(result, packages[head or HEADS[0]], atoms) for result, (atoms, head) in zip(results, structures, strict=True)
    )
    return {
        "mixed heads": worst,
        "difference of the heads": abs(results[0].energy - results[1].energy) / 5,
        "an unknown head": float(answers(engine, [(cases.water(), "omol")]) == ["unknown_head"]),
    }


def precision(folder: Path) -> dict[str, float]:
    """float64 on request, and the repulsion in float64 always."""
    from mace.calculators import MACECalculator

    structures = [(atoms, "") for atoms in (cases.perovskite(), cases.slab(), cases.water())]
    double = answers(served(folder, "tiny-mace", dtype="float64"), structures)
    path = str(folder / "tiny-mace" / "tiny.model")
    exact = MACECalculator(model_paths=path, device="cpu", default_dtype="float64")
    path = str(folder / "tiny-mace-omat" / "tiny.model")
    rough, fine = (MACECalculator(model_paths=path, device="cpu", default_dtype=dtype) for dtype in ("float32", "float64"))
    fine.calculate(cases.water())
    rough.calculate(cases.water())
    result = answers(served(folder, "tiny-mace-omat"), [(cases.water(), "")])[0]
    energies = answers(served(folder, "tiny-mace"), [(cases.slab(), "")], DEFAULT_OUTPUTS | {"energies"})[0]
    return {
        "float64": max(deviation(result, exact, atoms) for result, (atoms, _) in zip(double, structures, strict=True)),
        "repulsion of the package in float32": float(np.abs(rough.results["forces"] - fine.results["forces"]).max()),
        "repulsion served": float(np.abs(result.forces - fine.results["forces"]).max()),
        "energies of the atoms": abs(float(energies.extra["energies"].sum()) - energies.energy) / 13,
    }


def charge(folder: Path) -> dict[str, float]:
    """What the embedding has a row for counts, and nothing else is taken."""
    engine = served(folder, "tiny-mace-omol")
    ions = [cases.CHARGED[name]() for name in ("hydroxide", "hydroxyl radical", "singlet oxygen", "triplet oxygen")]
    anion, radical, singlet, triplet = answers(engine, [(atoms, "") for atoms in ions])
    refused = [cases.charged("OH", *values) for values in ((11, 1), (-11, 1), (0, 11))]
    codes = answers(engine, [(atoms, "") for atoms in refused])
    neutral = cases.water()
    explicit = cases.water()
    explicit.info |= {"charge": 0, "spin": 1}
    one, other = answers(engine, [(neutral, ""), (explicit, "")])
    unspecified = [cases.charged("OH", 0, 0), cases.charged("H2O", 1, 0), cases.charged("OH", 0, 1)]
    radical_default, cation_default, no_radical = answers(engine, [(atoms, "") for atoms in unspecified])
    (cation,) = answers(engine, [(cases.CHARGED["water cation"](), "")])
    plain = answers(served(folder, "tiny-mace"), [(atoms, "") for atoms in (ions[0], ions[3])])
    return {
        "charge": abs(anion.energy - radical.energy),
        "spin": abs(singlet.energy - triplet.energy),
        "refused": float(codes == ["charge_not_supported"] * 2 + ["spin_not_supported"]),
        "default is a neutral singlet": abs(one.energy - other.energy),
        "radical without a spin": abs(radical_default.energy - radical.energy),
        "radical taken for a singlet": abs(no_radical.energy - radical.energy),
        "cation without a spin": abs(cation_default.energy - cation.energy),
        "refused where it would be dropped": float(plain == ["charge_not_supported", "spin_not_supported"]),
    }


def polar(folder: Path) -> dict[str, float]:
    """A molecule is in open space, and not in the box that makes it periodic; what is neither molecule nor crystal is refused."""
    engine = served(folder, "tiny-mace-polar")
    anion = cases.CHARGED["hydroxide"]()
    boxed = cases.in_vacuum(anion)
    far = anion.copy()
    far.positions += 700.0
    slab = cases.slab()
    alone, box, moved, refused = answers(engine, [(anion, ""), (boxed, ""), (far, ""), (slab, "")])
    return {
        "what a box does to an ion": abs(alone.energy - box.energy),
        "an ion elsewhere": abs(alone.energy - moved.energy),
        "a slab is refused": float(refused == "invalid_cell"),
        "no stress": float(all(result.stress is None for result in (alone, box))),
    }


def disagreements(folder: Path) -> dict[str, float]:
    """A checkpoint that is not what the catalogue says is not loaded; archives are put on the device that is asked for."""

    def fails(name: str, **changed: Any) -> float:
        try:
            served(folder, name, **changed)
        except ValueError:
            return 1.0
        return 0.0

    load = torch.jit.load
    with patch("torch.jit.load", side_effect=load) as loads:
        served(folder, "tiny-mace")
    places = [call.kwargs.get("map_location") for call in loads.call_args_list]
    return {
        "heads that the catalogue does not know": fails("tiny-mace-multihead", heads=(), default_head=""),
        "heads that the checkpoint does not have": fails("tiny-mace", heads=("omol",)),
        "charge that the catalogue does not know": fails("tiny-mace-omol", uses_charge=False),
        "charge that the checkpoint does not know": fails("tiny-mace", uses_charge=True, uses_spin=True),
        "archives": float(len(places) > 5 and set(places) == {"cpu"}),
    }


if __name__ == "__main__":
    main()
