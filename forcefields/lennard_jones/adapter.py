"""The 12-6 potential of Lennard-Jones, truncated at the cutoff and shifted so that the energy is zero there.

    v(r) = 4 eps ((sigma / r)^12 - (sigma / r)^6) - v0

J. E. Jones, Proc. R. Soc. A 106, 463 (1924). The smallest family there is: CONTRIBUTING.md walks through this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from forcefields.base import ForceField, Graph, Result
from forcefields.catalogue import Variant
from forcefields.neighbours import neighbour_pairs
from forcegate.contract import VOIGT
from forcegate.structure import Structure


@dataclass(frozen=True)
class _Pairs:
    first: np.ndarray
    vectors: np.ndarray
    volume: float


class LennardJones(ForceField):
    """Lennard-Jones for one element, over half of each directed pair."""

    def __init__(self, symbol: str, epsilon: float, sigma: float, cutoff: float) -> None:
        self.elements = (atomic_numbers[symbol],)
        self.cutoff = cutoff
        self._epsilon, self._sigma = epsilon, sigma
        self._shift = 4 * epsilon * ((sigma / cutoff) ** 12 - (sigma / cutoff) ** 6)

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> LennardJones:  # noqa: ARG003
        """Reads symbol, epsilon (eV), sigma (A) and cutoff (A)."""
        data = json.loads(checkpoint.read_text())
        return cls(data["symbol"], data["epsilon_eV"], data["sigma_A"], data["cutoff_A"])

    def graph(self, structure: Structure, head: str) -> Graph:  # noqa: ARG002
        """All directed pairs within the cutoff."""
        first, _second, vectors = neighbour_pairs(structure, self.cutoff)
        return Graph(_Pairs(first, vectors, abs(np.linalg.det(structure.cell))), len(structure), len(first))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        """Energies, forces and stresses of all structures, the pairs of all of them in one array."""
        structures = len(graphs)
        atoms = np.array([graph.atoms for graph in graphs])
        edges = np.array([graph.edges for graph in graphs])
        offset = np.concatenate([[0], np.cumsum(atoms)])
        owner = np.repeat(np.arange(structures), edges)
        first = np.concatenate([graph.payload.first for graph in graphs]) + offset[owner]
        vectors = np.concatenate([graph.payload.vectors for graph in graphs])
        volumes = np.array([graph.payload.volume for graph in graphs])

        squared = np.einsum("ei,ei->e", vectors, vectors)
        sixth = (self._sigma**2 / squared) ** 3
        # Every pair is here twice, once from each end, hence the halves.
        pair_energy = 4 * self._epsilon * (sixth**2 - sixth) - self._shift
        energy = np.bincount(owner, weights=0.5 * pair_energy, minlength=structures)
        # dv/dr times the unit vector from i to j is the force on i.
        pull = (-24 * self._epsilon * (2 * sixth**2 - sixth) / squared)[:, None] * vectors
        forces = np.stack([np.bincount(first, weights=pull[:, k], minlength=offset[-1]) for k in range(3)], axis=1)
        # W_ab = 1/2 sum_pairs r_a (dv/dr) r_b / r, and the stress is W / V.
        virials = [np.bincount(owner, weights=0.5 * vectors[:, a] * pull[:, b], minlength=structures) for a, b in VOIGT]
        stress = np.stack(virials, axis=1) / volumes[:, None]
        return [Result(float(energy[k]), forces[offset[k] : offset[k + 1]], stress[k]) for k in range(structures)]


ADAPTER = LennardJones
