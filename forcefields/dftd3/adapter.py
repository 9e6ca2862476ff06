"""D3 dispersion with the damping of Becke and Johnson, by the simple-dftd3 library: energy, forces and stress, periodic.

Two-body terms alone (s9 = 0), which is what "D3(BJ)" stands for in VASP (IVDW = 12) and in torch-dftd; the library's own
default would add the three-body term of Axilrod, Teller and Muto.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase.units import Bohr, Hartree
from dftd3.interface import DispersionModel, RationalDampingParam

from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant, parse_elements
from forcegate.contract import voigt_from_matrix

CUTOFF = 60 * Bohr
"""A, of the library's two-body sum; a molecule's periodic images are farther away than that."""


class DispersionD3(ForceField):
    """The correction for one functional. It has no batches: a structure takes milliseconds."""

    reads_neighbours = False

    def __init__(self, damping: RationalDampingParam, cutoff: float) -> None:
        self.cutoff = cutoff
        self.elements = parse_elements("1-94")
        self._damping = damping

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> DispersionD3:  # noqa: ARG003
        """Reads s6, s8, a1 and a2 (Bohr)."""
        data = json.loads(checkpoint.read_text())
        damping = RationalDampingParam(s6=data["s6"], s8=data["s8"], s9=0.0, a1=data["a1"], a2=data["a2_bohr"])
        return cls(damping, variant.cutoff)

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        """The structure itself: the library counts its own neighbours. Their number is estimated from the density."""
        density = len(structure) / abs(np.linalg.det(structure.cell))
        return Graph(structure, len(structure), int(len(structure) * density * 4 / 3 * math.pi * self.cutoff**3))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One structure after the other."""
        gradients = bool(outputs & {"forces", "stress"})
        return [self._evaluate(graph.payload, gradients) for graph in graphs]

    def _evaluate(self, structure: Normalised, gradients: bool) -> Result:
        model = DispersionModel(structure.numbers, structure.positions / Bohr, structure.cell / Bohr, np.ones(3, dtype=bool))
        answer = model.get_dispersion(self._damping, grad=gradients)
        energy = float(answer["energy"]) * Hartree
        if not gradients:
            return Result(energy)
        # The library's virial is dE/de.
        stress = np.asarray(answer["virial"]) * Hartree / abs(np.linalg.det(structure.cell))
        return Result(energy, np.asarray(answer["gradient"]) * (-Hartree / Bohr), voigt_from_matrix(stress))


ADAPTER = DispersionD3
