"""A double of an adapter that fails on purpose, for the tests of packing, bisecting and the engine.

Its energies are made up, and each structure's first coordinate says what is to go wrong with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forcefields import catalogue
from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.runtime.batch import Job
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.physics import Limits
from forcegate import errors
from forcegate.structure import Structure

ENERGY = frozenset({"energy"})


class Faulty(ForceField):
    """Answers with the number of atoms; a graph's payload may hold an error to raise, and a pass holds at most ``room`` atoms."""

    def __init__(self, room: int = 10**9) -> None:
        self.cutoff, self.elements = 4.0, (18,)
        self.room = room
        self.passes: list[list[int]] = []

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Faulty:
        raise NotImplementedError

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        original = structure.original
        assert original is not None
        fault = FAULTS.get(round(float(original.positions[0, 0])))
        if isinstance(fault, GraphFault):
            raise fault.error
        return Graph(fault, len(structure), 10 * len(structure))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        self.passes.append([graph.atoms for graph in graphs])
        for graph in graphs:
            if isinstance(graph.payload, Exception):
                raise graph.payload
        if sum(graph.atoms for graph in graphs) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return [
            Result(np.nan if graph.payload == "nan" else float(graph.atoms), np.zeros((graph.atoms, 3)), np.zeros(6))
            for graph in graphs
        ]


class GraphFault:
    """An error that building the graph ends with."""

    def __init__(self, error: Exception) -> None:
        self.error = error


FAULTS: dict[int, object] = {
    101: RuntimeError("expected scalar type Float"),
    102: errors.EvaluationFailed("the package's own words"),
    103: MemoryError(),
    104: "nan",
    105: GraphFault(KeyError("no such thing")),
    106: GraphFault(errors.InvalidStructure("not for this package")),
}


def job(atoms: int, edges: int = 0, outputs: frozenset[str] = DEFAULT_OUTPUTS, payload: object = None, alone: bool = False) -> Job:
    structure = Structure(np.full(atoms, 18, dtype=np.int32), np.zeros((atoms, 3)))
    return Job(structure, "", outputs, alone=alone, graph=Graph(payload, atoms, edges))


def structure(atoms: int = 1, fault: int = 0) -> Structure:
    """Argon along z, with the fault that the first coordinate names."""
    positions = np.zeros((atoms, 3))
    positions[:, 2] = 3.5 * np.arange(atoms)
    positions[:, 0] = fault
    return Structure(np.full(atoms, 18, dtype=np.int32), positions)


def engine(force_field: Faulty, edges: int = 10**6) -> Engine:
    return Engine(force_field, catalogue.load().resolve("lj-argon"), Limits(10_000, edges))
