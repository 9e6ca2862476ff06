"""The ladder of shapes: few of them, each large enough, none much too large."""

from __future__ import annotations

import numpy as np
import pytest

from forcefields.grace.shapes import ATOM_STEP, EDGE_STEP, WASTE, Ladder, Shape, rung


@pytest.mark.parametrize("seed", range(5))
def test_500_random_sizes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ladder = Ladder()
    for _ in range(500):
        atoms = int(np.exp(generator.uniform(0, np.log(300))))
        needed = Shape(atoms, int(atoms * generator.uniform(4, 90)))
        shape = ladder.fitting(needed)
        assert shape.holds(needed)
        assert shape.cost <= WASTE * rung(needed).cost
    assert len(ladder.compiled) <= 35, "of 500"
    assert len(set(ladder.compiled)) == len(ladder.compiled)


def test_one_atom_is_left_over_for_padding() -> None:
    assert not Shape(16, 256).holds(Shape(16, 256))
    assert Shape(17, 256).holds(Shape(16, 256))
    assert rung(Shape(16, 256)) == Shape(32, 256)


@pytest.mark.parametrize("size", [Shape(1, 0), Shape(15, 256), Shape(16, 257), Shape(1_000, 60_000), Shape(50_000, 4_000_000)])
def test_steps(size: Shape) -> None:
    shape = rung(size)
    assert shape.holds(size)
    assert shape.atoms <= max(16, ATOM_STEP * (size.atoms + 1))
    assert shape.edges <= max(256, 1.01 * EDGE_STEP * size.edges)


def test_what_was_compiled_is_used_again() -> None:
    ladder = Ladder()
    first = ladder.fitting(Shape(100, 6_000))
    assert ladder.fitting(Shape(90, 5_500)) == first
    assert ladder.fitting(Shape(2, 20)) != first
    assert len(ladder.compiled) == 2
