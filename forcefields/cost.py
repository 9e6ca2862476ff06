"""What an evaluation costs: the one measure behind packing, admission and the memory limit.

Time and memory grow with the neighbour pairs and the atoms of a forward pass. How fast they grow differs from model to model and
from device to device, so each model measures itself when it is loaded (forcefields/runtime/calibration.py), and what it found is in
its report for the gateway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forcefields.cells import is_flat, volume
from forcegate.structure import Structure

SPHERE = 4.0 / 3.0 * math.pi


@dataclass(frozen=True)
class Cost:
    """What one forward pass of a model takes on one device: ``per_pass + per_atom * atoms + per_edge * edges``.

    Attributes:
        seconds_per_pass, seconds_per_atom, seconds_per_edge: s, checks and graphs included.
        bytes_per_edge: bytes at the peak of memory, of one directed neighbour pair.
        edges: directed neighbour pairs of the largest structure that fits into the device's memory.
    """

    seconds_per_pass: float
    seconds_per_atom: float
    seconds_per_edge: float
    bytes_per_edge: float
    edges: int

    def seconds(self, atoms: int, edges: int, passes: float = 1.0) -> float:
        """Seconds that ``passes`` forward passes over all in all ``atoms`` and ``edges`` take."""
        return passes * self.seconds_per_pass + atoms * self.seconds_per_atom + edges * self.seconds_per_edge

    def as_dict(self) -> dict[str, Any]:
        """For a model's report."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cost:
        """The inverse of ``as_dict``."""
        return cls(**data)


def estimated_edges(structure: Structure, cutoff: float) -> int:
    """Directed neighbour pairs within ``cutoff`` (A), estimated from the density alone, before any graph exists.

    Exact on average for a crystal. Atoms that crowd in a part of the cell have more neighbours than this says; the model counts
    them truly before it evaluates them.
    """
    atoms = len(structure)
    if structure.pbc.all():
        filled = abs(volume(structure.cell.tolist()))
        return int(atoms * atoms / filled * SPHERE * cutoff**3) if filled > 0 else atoms * atoms
    vectors = structure.cell[structure.pbc]
    periodic = float(np.sqrt(max(np.linalg.det(vectors @ vectors.T), 0.0))) if len(vectors) else 1.0
    normals = np.linalg.svd(vectors)[2][len(vectors) :] if len(vectors) else np.eye(3)
    # A molecule or a slab fills what it spans and half a bond around.
    filled = periodic * float(np.prod(np.ptp(structure.positions @ normals.T, axis=0) + 2.0))
    if not filled > 0.0 or not math.isfinite(filled):
        return atoms * atoms
    pairs = atoms * atoms / filled * SPHERE * cutoff**3
    return int(min(pairs, atoms * (atoms - 1)) if not len(vectors) else pairs)


def largest_edges(structures: Iterable[Structure], cutoff: float) -> int:
    """Those of the structure that has most; 0 for none. One that a model is going to refuse counts as having none."""
    return max((_edges(structure, cutoff) for structure in structures), default=0)


def _edges(structure: Structure, cutoff: float) -> int:
    try:
        return 0 if is_flat(structure.cell[structure.pbc].tolist()) else estimated_edges(structure, cutoff)
    except (ArithmeticError, ValueError):  # coordinates that are not finite
        return 0
