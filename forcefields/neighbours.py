"""Neighbour lists of fully periodic structures, by vesin: fast on the CPU, and right on every odd cell it was tried on.

A list is made once: the runtime looks at it for atoms that coincide and for the number of pairs, and the adapter then makes its
graph of the same one. It is kept on the ``Normalised`` structure, and goes with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from vesin import NeighborList

from forcegate.structure import Structure


class Neighbours(NamedTuple):
    """All directed pairs within a cutoff, in no particular order.

    Attributes:
        first, second: int64 ``[E]``, indices of the two atoms.
        images: int64 ``[E, 3]``, the cell in which the second atom lies.
        vectors: float64 ``[E, 3]``, from the first to the second, in A.
        distances: float64 ``[E]``, A.
    """

    first: np.ndarray
    second: np.ndarray
    images: np.ndarray
    vectors: np.ndarray
    distances: np.ndarray


def listed(structure: Structure, cutoff: float) -> Neighbours:
    """All directed pairs within ``cutoff`` (A), made on the CPU."""
    found = Neighbours(*_list(structure, cutoff, full=True, quantities="ijSDd"))
    return found._replace(images=found.images.astype(np.int64))


def neighbours(structure: Structure, cutoff: float, make: Callable[[Structure, float], Neighbours] = listed) -> Neighbours:
    """All directed pairs within ``cutoff`` (A); of a ``Normalised`` structure the list of its last cutoff is kept.

    Args:
        make: makes a list that is not there yet.
    """
    kept: dict[float, Neighbours] | None = getattr(structure, "lists", None)
    if kept is not None and cutoff in kept:
        return kept[cutoff]
    found = make(structure, cutoff)
    if kept is not None:
        kept.clear()
        kept[cutoff] = found
    return found


def neighbour_pairs(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs within ``cutoff``.

    Returns:
        ``i`` and ``j``, int64 ``[E]``, and the vector from ``i`` to ``j``, float64 ``[E, 3]`` in A.
    """
    found = neighbours(structure, cutoff)
    return found.first, found.second, found.vectors


def neighbour_images(structure: Structure, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All directed pairs within ``cutoff``, sorted by their first atom.

    Returns:
        ``i`` and ``j``, int64 ``[E]``, the cell in which ``j`` lies, int64 ``[E, 3]``, and the distance, float64 ``[E]`` in A.
    """
    found = neighbours(structure, cutoff)
    order = np.argsort(found.first, kind="stable")
    return found.first[order], found.second[order], found.images[order], found.distances[order]


def closest_pair(structure: Structure, cutoff: float, found: Neighbours | None = None) -> tuple[int, int, float] | None:
    """The nearest two atoms within ``cutoff`` and their distance in A, or None when all are farther apart.

    Args:
        found: a list of at least that cutoff, where there is one.
    """
    if found is None:
        # vesin sorts atoms into bins as wide as the cutoff: with 0.1 A a molecule's box has millions of them.
        i, j, distance = _list(structure, max(cutoff, 1.0), full=False, quantities="ijd")
    else:
        i, j, distance = found.first, found.second, found.distances
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
