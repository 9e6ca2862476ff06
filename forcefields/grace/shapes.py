"""The few lengths to which lists of atoms and bonds are padded: each is compiled once, which takes seconds.

A list that no compiled length fits well is padded to a longer one at first. A closer one is compiled when the time that padding has
cost exceeds that of compiling: nobody waits for a compiler on account of a size that comes once, and what comes often is padded
little. Of all rules that do not know what comes next this one is the best in the worst case, with twice the time of one that does
(the ski-rental problem: Karlin et al., Algorithmica 3, 79 (1988)).
"""

from __future__ import annotations

import json
import math
import os
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ATOM_STEP, FIRST_ATOMS = 2.0, 16
EDGE_STEP, FIRST_EDGES = 1.5, 256
ATOM_COST = 30
"""What an atom costs, in bonds."""
WASTE = 1.3
"""A length that was compiled before is as good as the closest one when it costs at most so many times as much."""
KEPT = 12
"""Shapes that are remembered for the next load, which compiles them before it is ready."""


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
    """Shapes on a ladder of geometric steps: which of them are compiled, and when another one is worth it.

    Attributes:
        compiled: those that an evaluation has gone through, the cheapest first.
        compile_seconds: what compiling takes, the mean of what was seen.
        seconds_per_cost: what a bond takes in a forward pass, from the pass last seen.
    """

    def __init__(self) -> None:
        self.compiled: list[Shape] = []
        self.compile_seconds = 0.0
        self.seconds_per_cost = 0.0
        self._compilations = 0
        self._uses: Counter[Shape] = Counter()
        self._wasted: defaultdict[Shape, float] = defaultdict(float)

    def fitting(self, needed: Shape) -> Shape:
        """A shape that holds ``needed``: the closest, or a compiled one as long as it has not cost more than compiling would."""
        closest, found = rung(needed), self.at_hand(needed)
        if found.cost > WASTE * closest.cost:
            self._wasted[closest] += (found.cost - closest.cost) * self.seconds_per_cost
            if self._wasted[closest] >= self.compile_seconds:
                found = closest
        self._uses[found] += 1
        return found

    def at_hand(self, needed: Shape) -> Shape:
        """The cheapest compiled shape that holds ``needed``, or the closest where none does. Nothing is counted."""
        return next((shape for shape in self.compiled if shape.holds(needed)), None) or rung(needed)

    def took(self, shape: Shape, seconds: float) -> None:
        """Learns from an evaluation; the seconds of the first one with a shape are taken for the compiler's."""
        if shape in self.compiled:
            self.seconds_per_cost = seconds / shape.cost
            return
        insort(self.compiled, shape, key=lambda known: known.cost)
        self._compilations += 1
        self.compile_seconds += (seconds - self.compile_seconds) / self._compilations

    def usual(self) -> list[Shape]:
        """Those that are worth having from the beginning, the most used ones first."""
        return [shape for shape, _ in self._uses.most_common(KEPT)]


def rung(needed: Shape) -> Shape:
    """The smallest shape of the ladder that holds ``needed``."""
    # One more atom for the padding bonds: cells of 8 or 16 atoms fill a step exactly.
    return Shape(_step(needed.atoms, FIRST_ATOMS, ATOM_STEP) + 1, _step(needed.edges, FIRST_EDGES, EDGE_STEP))


def remembered(file: Path) -> list[Shape]:
    """The shapes of an earlier process; none where the file is missing or cannot be read."""
    try:
        return [Shape(int(atoms), int(edges)) for atoms, edges in json.loads(file.read_text())][:KEPT]
    except (OSError, ValueError, TypeError):
        return []


def remember(file: Path, shapes: Iterable[Shape]) -> None:
    """Writes them for the next process; another instance may do so at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(list(shapes)))
    new.replace(file)


def _step(number: int, first: int, factor: float) -> int:
    length = first
    while length < number:
        length = math.ceil(length * factor)
    return length
