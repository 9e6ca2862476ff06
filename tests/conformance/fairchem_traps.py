"""``environments/fairchem/bin/python -m tests.conformance.fairchem_traps FOLDER``: what is easily got wrong, as figures.

Prints JSON: energies in eV per atom, forces in eV/A, and the codes of refusals.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch

from forcefields import catalogue
from forcefields.fairchem.adapter import FAIRChem
from forcefields.neighbours import neighbour_images
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.physics import normalise
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.reference import calculator, evaluate
from tests.conformance.tiny import engine

NEUTRAL = ("SrTiO3", "water", "slab TTF")


def tasks(uma: Engine, checkpoint: Path) -> dict[str, float]:
    """Every task, charge and spin in one batch, against the package's calculator of that task, one by one."""
    jobs, expected = [], []
    for head in uma.variant.heads:
        own = calculator("tiny-uma", head, checkpoint)
        for case in (*NEUTRAL, *(cases.CHARGED if head == "omol" else ())):
            atoms = cases.structure("fairchem", case)
            jobs.append(Job(from_atoms(atoms), head, DEFAULT_OUTPUTS))
            expected.append(evaluate(own, atoms))
    uma.run(jobs)
    energies, forces = [0.0], [0.0]
    for job, known in zip(jobs, expected, strict=True):
        assert job.result is not None, job.error
        energies.append(abs(job.result.energy - float(known["energy"])) / len(job.structure))
        forces.append(float(np.abs(job.result.forces - known["forces"]).max()))
    crystals = [job.result.energy for job in jobs if job.result and len(job.structure) == 5]
    return {
        "tasks, energy": max(energies),
        "tasks, forces": max(forces),
        "tasks differ by": float(np.abs(np.subtract.outer(crystals, crystals))[~np.eye(len(crystals), dtype=bool)].min()) / 5,
    }


def charges(uma: Engine) -> dict[str, float | str]:
    """What charge and spin change with omol, that omat refuses them, and what a radical is without a spin."""

    def answer(atoms: Atoms, head: str) -> Job:
        job = Job(from_atoms(atoms), head, DEFAULT_OUTPUTS)
        uma.run([job])
        return job

    def energy(atoms: Atoms) -> float:
        job = answer(atoms, "omol")
        assert job.result is not None, job.error
        return job.result.energy

    radical = energy(cases.charged("OH", 0, 2))
    refused = {
        f"{name} with omat": answer(cases.charged("OH", charge, spin), "omat").error
        for name, charge, spin in (("charge", -1, 0), ("spin", 0, 2), ("both", 1, 3))
    }
    return {
        "charge": abs(energy(cases.charged("OH", -1, 1)) - radical),
        "spin": abs(energy(cases.charged("O2", 0, 3)) - energy(cases.charged("O2", 0, 1))),
        "radical without a spin": abs(energy(cases.charged("OH", 0, 0)) - radical),
        **{name: error.code if error else "none" for name, error in refused.items()},
    }


def forgotten_keys(uma: Engine) -> dict[str, float]:
    """The package's own conversion drops charge and spin in silence unless ``r_data_keys`` names them."""
    atoms = cases.charged("OH", -1, 1)
    unit = uma.force_field._unit  # type: ignore[attr-defined]

    def energy(**arguments: object) -> float:
        return float(unit.predict(atomicdata_list_to_batch([_external(atoms, uma, **arguments)]))["energy"][0])

    return {"dropped by the package": abs(energy() - energy(r_data_keys=["charge", "spin"]))}


def _external(atoms: Atoms, uma: Engine, **arguments: object) -> AtomicData:
    """The package's conversion of a molecule, with the edges that the model is set up to be given."""
    theirs = AtomicData.from_ase(atoms, task_name="omol", **arguments)
    ours = uma.force_field.graph(normalise(from_atoms(atoms), uma.force_field.cutoff), "omol").payload
    ours.charge, ours.spin = theirs.charge, theirs.spin
    return ours  # type: ignore[no-any-return]


def cap(direct: Engine) -> dict[str, float]:
    """Neighbours of an atom in copper: all that are in reach, and those that a model of 30 hears."""
    figures = {}
    model = direct.force_field
    for case in ("perfect Cu", "Cu"):
        normalised = normalise(from_atoms(cases.structure("fairchem", case)), model.cutoff)
        figures[f"{case}, in reach"] = len(neighbour_images(normalised, model.cutoff)[0]) / len(normalised)
        figures[f"{case}, heard"] = model.graph(normalised, "").edges / len(normalised)
    return figures


def mistakes(path: Path, esen: Engine) -> dict[str, str]:
    """A catalogue that says what the checkpoint is not is found out on load."""
    told = {}
    for name, wrong in {
        "direct": replace(esen.variant, direct_forces=True),
        "heads": replace(esen.variant, heads=("omol", "omat"), default_head="omol"),
        "task": replace(esen.variant, options={"task": "omat"}),
    }.items():
        try:
            FAIRChem.load(path, wrong, "cpu")
            told[f"wrong {name}"] = "loaded"
        except ValueError as error:
            told[f"wrong {name}"] = str(error)
    return told


def main() -> None:
    """Prints all figures."""
    folder = Path(sys.argv[1])
    families = catalogue.load()
    uma, path = engine(families.resolve("tiny-uma"), folder)
    esen, its_path = engine(families.resolve("tiny-esen"), folder)
    direct, _ = engine(families.resolve("tiny-esen-direct"), folder)
    figures = tasks(uma, path) | charges(uma) | forgotten_keys(uma) | cap(direct) | mistakes(its_path, esen)
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
