"""``environments/<family>/bin/python -m tests.conformance.corrupted VARIANT CHECKPOINT WRONG...``: the gate on wrong force fields.

Prints, as JSON, the checks that fail for each way of being wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from forcefields import catalogue
from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.runtime import gate, golden
from forcefields.runtime.engine import Engine
from tests.conformance.in_process import engine

Spoil = Callable[[Result, Graph, int], Result]
"""From a right result, its graph and the number of graphs in the pass, to a wrong one."""


class Corrupted(ForceField):
    """A force field whose results are spoilt after it has evaluated them rightly."""

    def __init__(self, right: ForceField, spoil: Spoil) -> None:
        self.cutoff, self.elements = right.cutoff, right.elements
        self._right, self._spoil = right, spoil

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Corrupted:
        """It is made around a loaded one."""
        raise NotImplementedError

    def graph(self, structure: Normalised, head: str) -> Graph:
        """The right graph, with the structure beside it."""
        graph = self._right.graph(structure, head)
        return replace(graph, payload=(graph.payload, structure))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """The spoilt results."""
        results = self._right.evaluate([replace(graph, payload=graph.payload[0]) for graph in graphs], outputs)
        return [self._spoil(result, graph, len(graphs)) for result, graph in zip(results, graphs, strict=True)]


def _forces(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda result, _graph, _count: replace(result, forces=None if result.forces is None else change(result.forces))


def _stress(change: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    return lambda result, _graph, _count: replace(result, stress=None if result.stress is None else change(result.stress))


def _field(result: Result, graph: Graph, _count: int) -> Result:
    """An energy that depends on where in space the crystal is; forces and energy belong together, so only this is wrong."""
    x = graph.payload[1].positions[:, 0]
    forces = result.forces
    if forces is not None:
        forces = forces - 0.02 * np.stack([np.cos(x), 0 * x, 0 * x], axis=1)
    return replace(result, energy=result.energy + 0.02 * float(np.sin(x).sum()), forces=forces)


def _first_atom_pushed(forces: np.ndarray) -> np.ndarray:
    pushed = forces.copy()
    pushed[0, 0] += 0.05
    return pushed


WRONG: dict[str, Spoil] = {
    "right": lambda result, _graph, _count: result,
    "forces 1 % too large": _forces(lambda forces: 1.01 * forces),
    "forces of opposite sign": _forces(lambda forces: -forces),
    "forces in another order": _forces(lambda forces: forces[::-1]),
    "first atom pushed": _forces(_first_atom_pushed),
    "stress of opposite sign": _stress(lambda stress: -stress),
    "stress in another order": _stress(lambda stress: stress[[0, 1, 2, 5, 4, 3]]),
    "stress in GPa": _stress(lambda stress: 160.21766 * stress),
    "fixed in space": _field,
    "batch matters": lambda result, _graph, count: replace(result, energy=result.energy + 1e-3 * count),
    "energy 1e-4 eV/atom higher": lambda result, graph, _count: replace(result, energy=result.energy + 1e-4 * graph.atoms),
}


def failures(right: Engine, recorded: dict[str, float] | None, ways: Sequence[str]) -> dict[str, list[str]]:
    """The names of the checks that fail, by what is wrong."""
    failed = {}
    for name in ways:
        wrong = Engine(Corrupted(right.force_field, WRONG[name]), right.variant, right.limits)
        report = gate.Gate(wrong, recorded).run(full=True)
        failed[name] = [check.name for check in report.checks if not check.passed]
    return failed


def main() -> None:
    """Prints the failures."""
    name, checkpoint, *ways = sys.argv[1:]
    families = catalogue.load()
    variant = families.resolve(name)
    recorded = golden.recorded(families.family_of(variant).golden, variant, Path("var"))
    assert recorded is not None, "the golden energies are part of what is tested"
    print(json.dumps(failures(engine(name, Path(checkpoint)), recorded, ways)))  # noqa: T201


if __name__ == "__main__":
    main()
