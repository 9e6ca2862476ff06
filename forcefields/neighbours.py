"""Neighbour lists of fully periodic structures, by vesin: fast on the CPU, and right on every odd cell it was tried on."""

from __future__ import annotations

import numpy as np
from vesin import NeighborList

from forcegate.structure import Structure


def neighbour_pairs(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs within ``cutoff``.

    Returns:
        ``i`` and ``j``, int64 ``[E]``, and the vector from ``i`` to ``j``, float64 ``[E, 3]`` in A.
    """
    first, second, vectors = _list(structure, cutoff, full=True, quantities="ijD")
    return first, second, vectors


def neighbour_images(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs within ``cutoff``, sorted by their first atom.

    Returns:
        ``i`` and ``j``, int64 ``[E]``, the cell in which ``j`` lies, int64 ``[E, 3]``, and the distance, float64 ``[E]`` in A.
    """
    i, j, shift, distance = _list(structure, cutoff, full=True, quantities="ijSd")
    order = np.argsort(i, kind="stable")
    return i[order], j[order], shift[order].astype(np.int64), distance[order]


def closest_pair(structure: Structure, cutoff: float) -> tuple[int, int, float] | None:
    """The nearest two atoms within ``cutoff`` and their distance in A, or None when all are farther apart."""
    # vesin sorts atoms into bins as wide as the cutoff: with 0.1 A a molecule's box has millions of them.
    i, j, distance = _list(structure, max(cutoff, 1.0), full=False, quantities="ijd")
    if len(distance) == 0:
        return None
    nearest = int(np.argmin(distance))
    if distance[nearest] >= cutoff:
        return None
    return int(i[nearest]), int(j[nearest]), float(distance[nearest])


def _list(structure: Structure, cutoff: float, full: bool, quantities: str) -> tuple[np.ndarray, ...]:
    calculator = NeighborList(cutoff=cutoff, full_list=full)
    i, j, *further = calculator.compute(
        points=structure.positions, box=structure.cell, periodic=True, quantities=quantities, copy=True
    )
    return i.astype(np.int64), j.astype(np.int64), *further
