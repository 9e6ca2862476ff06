"""``environments/lennard_jones/bin/python -m tests.conformance.device_lists``: lists of odd cells made in the two ways.

The device is the CPU, reached as a GPU would be: through torch's tensors. Prints JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from forcefields.base import Normalised
from forcefields.neighbours import Neighbours, neighbours
from forcefields.runtime.device_neighbours import DeviceNeighbours
from forcefields.runtime.physics import normalise
from forcegate.structure import Structure

CUTOFF = 4.0


def cells() -> Iterator[Structure]:
    """As those of tests/unit/test_normalise.py: left-handed, skewed, thin, vast, without vectors, atoms far outside; one atom."""
    generator = np.random.default_rng(11)
    for number in range(200):
        pbc = generator.integers(0, 2, 3).astype(bool)
        cell = np.diag(generator.uniform(2.5, 7.0, 3)) + generator.uniform(-0.8, 0.8, (3, 3))
        cell = cell[[1, 0, 2]] if number % 2 else cell
        cell[~pbc] = 0.0
        for k in np.flatnonzero(pbc)[1:]:
            cell[k] += generator.integers(-3, 4) * cell[np.flatnonzero(pbc)[0]]
        count, spread = 1 + number % 6, (2.0, 15.0, 200.0)[number % 3]
        yield Structure(np.full(count, 18, dtype=np.int32), generator.uniform(-spread, spread, (count, 3)), cell, pbc)
    whole = np.ones(3, dtype=bool)
    yield Structure(np.array([18], dtype=np.int32), np.zeros((1, 3)), np.diag([3.0, 3.0, 0.2]), whole)
    yield Structure(np.full(2, 18, dtype=np.int32), np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 4.0]]), 9e5 * np.eye(3), whole)
    yield Structure(np.array([18], dtype=np.int32), np.zeros((1, 3)))


def triples(found: Neighbours) -> set[tuple[int, ...]]:
    """(i, j, image) of every pair."""
    return {(int(i), int(j), *map(int, image)) for i, j, image in zip(found.first, found.second, found.images, strict=True)}


def fresh(structure: Structure) -> Normalised:
    """Without a list that is kept."""
    return normalise(structure, CUTOFF)


def main() -> None:
    """Prints the figures."""
    listed = DeviceNeighbours("cpu")
    others = pairs = kept = 0
    worst = 0.0
    types: set[str] = set()
    for structure in cells():
        one, other = neighbours(fresh(structure), CUTOFF), listed(normalised := fresh(structure), CUTOFF)
        others += triples(one) != triples(other) or len(triples(other)) != len(other.first)
        pairs += len(one.first)
        kept += normalised.lists == {CUTOFF: other}
        types.add(" ".join(str(array.dtype) for array in other))
        apart = normalised.positions[other.second] + other.images @ normalised.cell - normalised.positions[other.first]
        worst = max(worst, *np.abs(apart - other.vectors).ravel(), *np.abs(np.linalg.norm(apart, axis=1) - other.distances), 0.0)
    print(json.dumps({"others": others, "pairs": pairs, "kept": kept, "worst": worst, "types": sorted(types)}))  # noqa: T201


if __name__ == "__main__":
    main()
