"""The few lengths to which lists of atoms and bonds are padded: each is compiled once, which takes seconds."""

from __future__ import annotations

import math
from typing import NamedTuple

ATOM_STEP, FIRST_ATOMS = 2.0, 16
EDGE_STEP, FIRST_EDGES = 1.5, 256
ATOM_COST = 30
"""What an atom costs, in bonds."""
WASTE = 1.3
"""A length that was compiled before is taken again when it costs at most so many times what a closer one would."""


class Shape(NamedTuple):
    """Numbers of atoms and of directed bonds."""

    atoms: int
    edges: int

    @property
    def cost(self) -> int:
        """In bonds."""
        return self.edges + ATOM_COST * self.atoms

    def holds(self, other: Shape) -> bool:
        """Whether ``other`` fits in; one atom has to be left over, to which padding bonds belong."""
        return self.atoms > other.atoms and self.edges >= other.edges


class Ladder:
    """Shapes on a ladder of geometric steps; remembers which were used."""

    def __init__(self) -> None:
        self.compiled: list[Shape] = []

    def fitting(self, needed: Shape) -> Shape:
        """A shape that holds ``needed``: one that was compiled before, unless it is too large; else the next on the ladder."""
        closest = rung(needed)
        again = min((shape for shape in self.compiled if shape.holds(needed)), key=lambda shape: shape.cost, default=None)
        if again is not None and again.cost <= WASTE * closest.cost:
            return again
        return self.mint(needed)

    def mint(self, needed: Shape) -> Shape:
        """The next shape on the ladder, which is remembered."""
        shape = rung(needed)
        if shape not in self.compiled:
            self.compiled.append(shape)
        return shape


def rung(needed: Shape) -> Shape:
    """The smallest shape of the ladder that holds ``needed``."""
    return Shape(_step(needed.atoms + 1, FIRST_ATOMS, ATOM_STEP), _step(needed.edges, FIRST_EDGES, EDGE_STEP))


def _step(number: int, first: int, factor: float) -> int:
    length = first
    while length < number:
        length = math.ceil(length * factor)
    return length
