"""``environments/orb/bin/python -m tests.conformance.orb_traps FOLDER``: what is easily got wrong with Orb, as figures.

Prints JSON: torques in eV, energies in eV per atom, the gate's deviation of forces in eV/A.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, make_supercell, molecule
from orb_models.forcefield.featurization_utilities import compute_pbc_radius_graph

from forcefields import catalogue
from forcefields.orb.adapter import Orb
from forcefields.runtime.engine import Engine
from forcefields.runtime.gate import Gate
from forcefields.runtime.physics import normalise
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.packages.orb import calculator
from tests.conformance.tiny import engine


def answer(engine: Engine, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy and forces."""
    (job,) = engine.evaluate([from_atoms(atoms)])
    assert job.result is not None, job.error
    assert job.result.forces is not None
    return job.result.energy, job.result.forces


def torque(engine: Engine, atoms: Atoms) -> float:
    """Norm of the net torque, eV."""
    _, forces = answer(engine, atoms)
    return float(np.linalg.norm(np.cross(atoms.positions - atoms.positions.mean(axis=0), forces).sum(axis=0)))


def molecules(direct: Engine) -> dict[str, float]:
    """Torques of molecules."""
    water, far = cases.water(), cases.far_fragments()
    boxed = water.copy()
    boxed.set_cell([20.0] * 3)
    boxed.pbc = True
    lever = float(np.linalg.norm(np.ptp(far.positions, axis=0)) * np.abs(answer(direct, far)[1]).sum())
    return {
        "torque of water": torque(direct, water),
        "torque of water in a periodic box": torque(direct, boxed),
        "torque of carbon dioxide": torque(direct, molecule("CO2")),
        "relative torque of far fragments": torque(direct, far) / lever,
        "far fragments are near fragments": abs(answer(direct, far)[0] - answer(direct, cases.near_fragments())[0]) / len(far),
    }


def all_electrons(omol: Engine, checkpoint: Path, folder: Path) -> dict[str, float]:
    """The gate's forces where isolated atoms have the energies of all their electrons, as in OMol25: thousands of eV.

    -20.8 Z^(7/3) eV is the statistical atom's, L. H. Thomas, Proc. Camb. Phil. Soc. 23, 542 (1927).
    """
    weights = torch.load(checkpoint)
    weights["heads.energy.reference.linear.weight"] = -20.8 * torch.arange(118.0) ** (7 / 3)
    torch.save(weights, folder / "electrons.ckpt")
    heavy = Engine(Orb.load(folder / "electrons.ckpt", omol.variant, "cpu"), omol.variant, omol.limits)
    return {"forces with all electrons": Gate(heavy, None)._forces()[0]}


def double(conservative: Engine, checkpoint: Path) -> dict[str, float]:
    """float64 against the package's own, and against float32."""
    variant = replace(conservative.variant, dtype="float64")
    energy, forces = answer(Engine(Orb.load(checkpoint, variant, "cpu"), variant, conservative.limits), cases.perovskite())
    package = calculator(variant.name, "", checkpoint, precision="float64")
    package.calculate(cases.perovskite())
    Orb.load(checkpoint, conservative.variant, "cpu")  # sets the process back to float32
    single = answer(conservative, cases.perovskite())[0]
    return {
        "float64": max(abs(energy - package.results["energy"]), float(np.abs(forces - package.results["forces"]).max())),
        "float64 and float32": abs(energy - single),
    }


def cap(conservative: Engine, checkpoint: Path) -> dict[str, float]:
    """The gate's forces with all and with 20 neighbours."""
    variant = conservative.variant
    capped = replace(variant, options={**variant.options, "neighbours": 20})
    few = Engine(Orb.load(checkpoint, capped, "cpu"), capped, conservative.limits)
    return {
        "forces with all neighbours": Gate(conservative, None)._forces()[0],
        "forces with 20 neighbours": Gate(few, None)._forces()[0],
    }


def skewed(conservative: Engine) -> dict[str, float]:
    """A crystal in a strongly skewed cell against its primitive one, and the neighbours that the package finds there."""
    primitive = cases.rattled(bulk("NaCl", "rocksalt", a=5.64), 16)
    atoms = make_supercell(primitive, [[8, 0, 0], [4, 1, 0], [4, 0, 1]])
    expected = answer(conservative, primitive)[0] / len(primitive)
    edges, _, _ = compute_pbc_radius_graph(
        positions=torch.from_numpy(atoms.positions),
        cell=torch.from_numpy(atoms.cell.array),
        pbc=torch.from_numpy(atoms.pbc),
        radius=6.0,
        max_number_neighbors=120,
        half_supercell=False,
        device="cpu",
    )
    found = conservative.force_field.graph(normalise(from_atoms(atoms), conservative.force_field.cutoff), "").edges
    return {
        "skewed cell": abs(answer(conservative, atoms)[0] / len(atoms) - expected),
        "neighbours in the skewed cell": found / len(atoms),
        "neighbours that the package finds": edges.shape[1] / len(atoms),
    }


def main() -> None:
    """Prints all figures."""
    folder = Path(sys.argv[1])
    families = catalogue.load()
    conservative, path = engine(families.resolve("tiny-orb-conservative"), folder)
    direct, its_path = engine(families.resolve("tiny-orb-direct"), folder)
    omol, omol_path = engine(families.resolve("tiny-orb-omol"), folder)
    weights = {key: value for key, value in torch.load(its_path).items() if not key.startswith("heads.forces.")}
    torch.save(weights, folder / "headless.ckpt")
    try:
        Orb.load(folder / "headless.ckpt", direct.variant, "cpu")
        refused = 0
    except ValueError:
        refused = 1
    radical, doublet = cases.charged("OH", 0, 0), cases.charged("OH", 0, 2)
    print(  # noqa: T201
        json.dumps(
            molecules(direct)
            | cap(conservative, path)
            | all_electrons(omol, omol_path, folder)
            | double(conservative, path)
            | skewed(conservative)
            | {"refused": refused, "radical without a spin": abs(answer(omol, radical)[0] - answer(omol, doublet)[0])}
        )
    )


if __name__ == "__main__":
    main()
