"""Lennard-Jones argon that fails in the ways that real models fail: each by an element in the structure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import torch

from forcefields.base import Graph, Result
from forcefields.lennard_jones.adapter import LennardJones
from forcegate.structure import Structure

HANG, CRASH, CRASH_IN_GRAPH, RAISE, MEMORY, SLOW, NOT_A_NUMBER = 43, 61, 84, 85, 87, 2, 86
"""Tc hangs holding the GIL, Pm kills the process, Po does so before, At raises, Fr has too little memory unless alone, He sleeps
for a second and for as long as there is a file HELD, Rn gives NaN."""
HELD = "held"
"""Beside the checkpoint; whoever puts it there decides how long He takes."""
HOLDING = "holding"
"""Beside it while a pass is held, so that whoever waits for that need not guess."""


class Faulty(LennardJones):
    """See the element numbers above."""

    @classmethod
    def load(cls, checkpoint, variant, device):
        """As Lennard-Jones, but for every element."""
        loaded = super().load(checkpoint, variant, device)
        loaded.elements = tuple(range(1, 119))
        loaded.held, loaded.holding = checkpoint.with_name(HELD), checkpoint.with_name(HOLDING)
        return loaded

    def graph(self, structure: Structure, head: str) -> Graph:
        """The pairs, with the elements beside them."""
        if CRASH_IN_GRAPH in structure.numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        graph = super().graph(structure, head)
        object.__setattr__(graph.payload, "numbers", set(structure.numbers.tolist()))
        return graph

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """Fails as asked; otherwise argon."""
        numbers = set().union(*(graph.payload.numbers for graph in graphs))
        if HANG in numbers:
            sum(iter(int, 1))  # never ends, and never lets another thread of Python run
        if CRASH in numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if RAISE in numbers:
            raise RuntimeError("this structure makes the package raise")
        if MEMORY in numbers and len(graphs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if SLOW in numbers:
            time.sleep(1.0)
            while self.held.exists():
                self.holding.touch()
                time.sleep(0.01)
            self.holding.unlink(missing_ok=True)
        results = super().evaluate(graphs, outputs)
        for graph, result in zip(graphs, results, strict=True):
            if NOT_A_NUMBER in graph.payload.numbers:
                result.energy = float("nan")
        return results


ADAPTER = Faulty
