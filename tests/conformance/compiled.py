"""``environments/<family>/bin/python -m tests.conformance.compiled FOLDER VARIANT BACKEND``: a variant compiled and as it is.

BACKEND is ``inductor``, the one of the service, which takes minutes, or ``aot_eager``: the same capturing, guards and derivatives,
and torch's own kernels in place of a C++ compiler. Prints JSON: how often torch compiled, passes that what it compiled did not fit,
the largest deviations (eV per atom, eV/A, eV/A^3) over passes of many sizes, the checks of the gate that failed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import bulk, molecule
from torch._dynamo.utils import counters

from forcefields import catalogue
from forcefields.base import Graph, Result
from forcefields.runtime import gate
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.physics import normalise
from forcegate.structure import Structure, from_atoms
from tests.conformance.cases import rattled
from tests.conformance.tiny import engine

PASSES = 30


def passes() -> Iterator[list[Structure]]:
    """Passes of 1 to 6 structures and 2 to about 100 atoms, no two alike in atoms and pairs; the last is of a single atom."""
    generator = np.random.default_rng(7)
    for number in range(PASSES):
        structures = []
        for _ in range(1 + number % 6):
            repeats, lattice = generator.integers(1, 4, 3), generator.uniform(5.3, 6.4)
            crystal = bulk("NaCl", "rocksalt", a=lattice).repeat(np.minimum(repeats, 9 // repeats.max()))
            structures.append(from_atoms(rattled(crystal, number)))
        if number % 4 == 3:
            structures.append(from_atoms(rattled(molecule("H2O"), number)))
        yield structures


def graphs(served: Engine, structures: Sequence[Structure]) -> list[Graph]:
    """What a pass is given; new each time, since a package may write into it."""
    field = served.force_field
    return [field.graph(normalise(structure, field.cutoff), served.variant.default_head) for structure in structures]


def answers(served: Engine, structures: Sequence[Structure]) -> list[Result]:
    """Of one pass."""
    return served.force_field.evaluate(graphs(served, structures), DEFAULT_OUTPUTS)


def fits(served: Engine, structures: Sequence[Structure], outputs: frozenset[str]) -> bool:
    """Whether a pass is evaluated by what was compiled at the load."""
    torch.compiler.set_stance("fail_on_recompile")
    try:
        served.force_field.evaluate(graphs(served, structures), outputs)
    except RuntimeError as error:
        if "recompile" not in str(error):
            raise
        return False
    finally:
        torch.compiler.set_stance("eager_on_recompile")
    return True


def deviations(found: Sequence[Result], expected: Sequence[Result]) -> dict[str, float]:
    """The largest ones."""
    largest = {"energy": 0.0, "forces": 0.0, "stress": 0.0}
    for one, other in zip(found, expected, strict=True):
        assert one.forces is not None
        assert other.forces is not None
        largest["energy"] = max(largest["energy"], abs(one.energy - other.energy) / len(one.forces))
        largest["forces"] = max(largest["forces"], float(np.abs(one.forces - other.forces).max()))
        if one.stress is not None and other.stress is not None:
            largest["stress"] = max(largest["stress"], float(np.abs(one.stress - other.stress).max()))
    return largest


def compile_with(backend: str) -> None:
    """Has whoever compiles a module do it with this backend."""
    usual = torch.nn.Module.compile

    def chosen(module: torch.nn.Module, *arguments: Any, **options: Any) -> None:
        usual(module, *arguments, **(options | {"backend": backend}))

    torch.nn.Module.compile = chosen  # type: ignore[method-assign]


def main() -> None:
    """Prints the figures."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    compile_with(sys.argv[3])
    variant = catalogue.load().resolve(name)
    usual, _ = engine(variant, folder)
    atom = [Structure(np.array([29]), np.zeros((1, 3)))]
    ways = [*passes(), atom]
    expected = [answers(usual, structures) for structures in ways]
    os.environ |= {"FORCEGATE_COMPILE": "on", "FORCEGATE_STATE": str(folder / "state")}
    started = time.perf_counter()
    served, _ = engine(variant, folder)
    seconds = time.perf_counter() - started
    at_load = counters["stats"]["unique_graphs"]
    found = [deviations(answers(served, structures), right) for structures, right in zip(ways, expected, strict=True)]
    energies_alone = frozenset({"energy"})
    figures: dict[str, Any] = {quantity: max(each[quantity] for each in found) for quantity in found[0]}
    figures["size of forces"] = max(float(np.abs(result.forces).max()) for right in expected for result in right)
    figures["sizes"] = len({(sum(map(len, structures)), len(structures)) for structures in ways})
    figures["compiled at the load"] = at_load
    figures["compiled later"] = counters["stats"]["unique_graphs"] - at_load
    figures["passes that did not fit"] = sum(not fits(served, structures, DEFAULT_OUTPUTS) for structures in ways[:-1])
    figures["energies that did not fit"] = sum(not fits(served, structures, energies_alone) for structures in ways[:-1])
    figures["a single atom fits"] = fits(served, atom, DEFAULT_OUTPUTS)
    figures["failed"] = [check.name for check in gate.Gate(served, None).run(full=True).checks if not check.passed]
    figures["seconds of the load"] = seconds
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
