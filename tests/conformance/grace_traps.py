"""``environments/grace/bin/python -m tests.conformance.grace_traps FOLDER CHECKPOINT COUNT``: what is easily got wrong, as figures.

CHECKPOINT is tiny-grace-1l's, which is loaded as it is. Prints JSON: energies in eV per atom, forces in eV/A, numbers of shapes.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.build import bulk, fcc111

from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.grace import tiny
from forcefields.grace.adapter import Grace
from forcefields.grace.shapes import Shape
from forcefields.runtime import loading
from forcefields.runtime.engine import Engine
from forcefields.runtime.physics import normalise
from forcefields.runtime.settings import ModelSettings
from forcegate.structure import from_atoms
from tests.conformance import cases

OTHERS = (Shape(12, 300), Shape(40, 900), Shape(90, 2_000))
"""Not on the ladder, so that nothing else compiles for them."""


def answer(served: Engine, atoms: Atoms) -> tuple[float, np.ndarray]:
    """Energy and forces."""
    (job,) = served.evaluate([from_atoms(atoms)])
    assert job.result is not None, job.error
    assert job.result.forces is not None
    return job.result.energy, job.result.forces


def stream(count: int) -> list[Atoms]:
    """Structures of random elements, sizes from 1 to 300 atoms and densities."""
    generator = np.random.default_rng(17)
    structures = []
    for number in range(count):
        cell = bulk("Cu", "fcc", a=float(generator.uniform(3.4, 6.0)), cubic=True)
        cell.numbers[:] = generator.integers(1, 90)
        repeats = generator.integers(1, 5, 3)
        atoms = cell.repeat(repeats)[: int(np.exp(generator.uniform(0, np.log(300))))]
        structures.append(cases.rattled(atoms, number))
    return structures


def compiled(served: Engine, structures: list[Atoms]) -> dict[str, float]:
    """How often XLA compiled: what the ladder says, and what lies in XLA's own cache."""
    cache = ModelSettings.from_environment().state / "xla"
    started = time.perf_counter()
    for atoms in structures:
        answer(served, atoms)
    seconds = time.perf_counter() - started
    model: Any = served.force_field
    shapes = len(model.shapes.compiled)
    started = time.perf_counter()
    for shape in OTHERS:
        model._compute([model._nothing(Shape(shape.atoms - 1, shape.edges))], shape)
    compiling = time.perf_counter() - started
    distinct = {(graph.atoms, graph.edges) for graph in (model.graph(_normalised(served, atoms), "") for atoms in structures)}
    return {
        "structures": len(structures),
        "of different lengths": len(distinct),
        "shapes": shapes,
        "files in the cache": len(list(cache.iterdir())) - len(OTHERS),
        "seconds": round(seconds, 2),
        "seconds of other shapes": round(compiling, 2),
    }


def _normalised(served: Engine, atoms: Atoms) -> Any:
    return normalise(from_atoms(atoms), served.force_field.cutoff)


def package(checkpoint: Path) -> dict[str, Any]:
    """What the package does to the caller's atoms, and to a slab whose cell is shorter than the cutoff above it."""
    from tensorpotential.calculator import TPCalculator

    own = TPCalculator(str(checkpoint), enable_uq_if_available=False)
    molecule = cases.water()
    own.calculate(molecule)
    slab = fcc111("Al", (2, 2, 3), vacuum=1.0)
    slab.pbc = (True, True, False)
    slab = cases.rattled(slab, 6)
    own.calculate(slab.copy())
    periodic = own.results["energy"]
    own.calculate(cases.in_vacuum(slab))
    return {
        "periodicity that the package gives a molecule": molecule.pbc.tolist(),
        "slab": slab,
        "slab in vacuum": own.results["energy"] / len(slab),
        "slab as the package sees it": periodic / len(slab),
    }


def exports(folder: Path, checkpoint: Path, variant: Variant) -> dict[str, Any]:
    """Other ways in which a SavedModel may have been exported."""
    old = folder / "old"
    shutil.copytree(checkpoint, old, ignore=shutil.ignore_patterns("metadata.*"))
    plain, without = Grace.load(checkpoint, variant, "cpu"), Grace.load(old, variant, "cpu")
    pairs = folder / "pairs"
    shutil.copytree(checkpoint, pairs)
    known = yaml.safe_load((pairs / "metadata.yaml").read_text())
    index = [known["chemical_symbols"].index(symbol) for symbol in ("Na", "Cl")]
    matrix = np.full((len(known["chemical_symbols"]),) * 2, known["cutoff"])
    matrix[np.ix_(index[:1], index[1:])] = matrix[np.ix_(index[1:], index[:1])] = 3.0
    (pairs / "metadata.yaml").write_text(yaml.safe_dump(known | {"cutoff_matrix": matrix.tolist()}))
    salt = normalise(from_atoms(cases.salt()), plain.cutoff)
    by_pair = Grace.load(pairs, variant, "cpu").graph(salt, "").payload
    lengths = np.linalg.norm(by_pair.vectors, axis=1)
    mixed = by_pair.species[by_pair.first] != by_pair.species[by_pair.second]
    return {
        **_single(folder / "float32", replace(variant, dtype="float32")),
        "without metadata": without.elements == plain.elements and without.cutoff == plain.cutoff,
        "longest bond Na-Cl": float(lengths[mixed].max()),
        "longest bond Na-Na": float(lengths[~mixed].max()),
        "wrong dtype": _refusal(checkpoint, replace(variant, dtype="float32")),
        "on a GPU": _refusal(checkpoint, variant, "cuda:0"),
    }


def _single(path: Path, variant: Variant) -> dict[str, float]:
    """A model with weights in float32, against the package's calculator."""
    from tensorpotential.calculator import TPCalculator

    tiny.make("1l-float32", path)
    crystal = cases.perovskite()
    energy, forces = answer(Engine(Grace.load(path, variant, "cpu"), variant, loading.limits(variant, 50_000, 0)), crystal)
    own = TPCalculator(str(path), enable_uq_if_available=False)
    own.calculate(crystal.copy())
    return {
        "float32, energy": abs(energy - own.results["energy"]) / len(crystal),
        "float32, forces": float(np.abs(forces - own.results["forces"]).max()),
        "float32, largest force": float(np.abs(forces).max()),
    }


def _refusal(checkpoint: Path, variant: Variant, device: str = "cpu") -> str:
    try:
        Grace.load(checkpoint, variant, device)
    except ValueError as error:
        return str(error)
    return "loaded"


def main() -> None:
    """Prints all figures."""
    folder, checkpoint, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    variant = catalogue.load().resolve("tiny-grace-1l")
    # TensorFlow has to be set up by the adapter, before the package imports it.
    served = Engine(Grace.load(checkpoint, variant, "cpu"), variant, loading.limits(variant, 50_000, 0))
    figures: dict[str, Any] = compiled(served, stream(count))
    if folder.is_dir():
        figures |= package(checkpoint)
        slab = figures.pop("slab")
        figures["slab as served"] = answer(served, slab)[0] / len(slab)
        figures |= exports(folder, checkpoint, variant)
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
