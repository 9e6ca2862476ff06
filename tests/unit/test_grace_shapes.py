"""The ladder of shapes: few of them, each large enough, none much too large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forcefields.grace.shapes import ATOM_STEP, EDGE_STEP, WASTE, Ladder, Shape, remember, remembered, rung

COMPILE, PER_COST = 2.0, 3e-6
"""Seconds, about those of a small model on a CPU."""
FULL = Shape(257, 14_763)


def warm() -> Ladder:
    """A ladder after a load with one shape."""
    ladder = Ladder()
    for seconds in (COMPILE, FULL.cost * PER_COST):
        ladder.took(FULL, seconds)
    return ladder


@pytest.mark.parametrize("seed", range(5))
def test_500_random_sizes_cost_at_most_twice_what_the_best_choice_would(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ladder, seconds, ideal = warm(), 0.0, 0.0
    rungs = set()
    for _ in range(500):
        atoms = int(np.exp(generator.uniform(0, np.log(300))))
        needed = Shape(atoms, int(atoms * generator.uniform(4, 90)))
        shape = ladder.fitting(needed)
        assert shape.holds(needed)
        seconds += 0 if shape in ladder.compiled else COMPILE
        seconds += shape.cost * PER_COST
        ideal += WASTE * rung(needed).cost * PER_COST
        rungs.add(rung(needed))
        ladder.took(shape, COMPILE)
    assert seconds <= 2 * (ideal + COMPILE * len(rungs)), "the bound of the ski-rental problem"
    assert len(ladder.compiled) < 0.8 * len(rungs), "sizes that come once are not compiled for"


def test_one_structure_does_not_wait_for_the_compiler_and_many_are_padded_little() -> None:
    ladder = warm()
    small = Shape(8, 400)
    first = ladder.fitting(small)
    assert first == FULL, "what there is"
    count = 1
    while (shape := ladder.fitting(small)) == FULL:
        count += 1
    assert shape == rung(small)
    wasted = count * (FULL.cost - shape.cost) * PER_COST
    assert COMPILE <= wasted + (FULL.cost - shape.cost) * PER_COST < COMPILE + 2 * FULL.cost * PER_COST


def test_what_is_used_most_is_compiled_by_the_next_process(tmp_path: Path) -> None:
    ladder, file = warm(), tmp_path / "xla" / "shapes.json"
    assert remembered(file) == []
    for needed, times in ((Shape(100, 6_000), 3), (Shape(2, 20), 5)):
        shape = rung(needed)
        ladder.took(shape, COMPILE)
        for _ in range(times):
            assert ladder.fitting(needed) == shape
    remember(file, ladder.usual())
    assert remembered(file) == [rung(Shape(2, 20)), rung(Shape(100, 6_000))]
    file.write_text("[[1]]")
    assert remembered(file) == []


def test_one_atom_is_left_over_for_padding() -> None:
    assert not Shape(16, 256).holds(Shape(16, 256))
    assert Shape(17, 256).holds(Shape(16, 256))
    assert rung(Shape(16, 256)) == Shape(17, 256)
    assert rung(Shape(17, 256)) == Shape(33, 256)


@pytest.mark.parametrize("size", [Shape(1, 0), Shape(16, 256), Shape(17, 257), Shape(1_000, 60_000), Shape(50_000, 4_000_000)])
def test_steps(size: Shape) -> None:
    shape = rung(size)
    assert shape.holds(size)
    assert shape.atoms <= max(16, ATOM_STEP * size.atoms) + 1
    assert shape.edges <= max(256, 1.01 * EDGE_STEP * size.edges)


def test_what_was_compiled_is_used_again() -> None:
    ladder = Ladder()
    first = ladder.fitting(Shape(100, 6_000))
    ladder.took(first, COMPILE)
    assert ladder.fitting(Shape(90, 5_500)) == first
