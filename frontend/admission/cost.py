"""How long a model is going to take for a structure: its own calibration, corrected by what is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forcefields.cost import Cost, largest_edges
from forcegate.structure import Structure

DEFAULT = Cost(seconds_per_pass=2e-3, seconds_per_atom=1e-4, seconds_per_edge=5e-6, bytes_per_edge=0.0, edges=0)
"""For a model whose report has no calibration: between a small model on a GPU and a large one on a CPU. Too low rather than too
high, since it refuses nobody before the first correction."""

MEMORY_SECONDS = 20.0
"""Time constant of the correction: what was seen longer ago counts less than a third."""
PRIOR_SECONDS = 0.25
"""The calibration counts as much as this many seconds of observation, at first."""
LIMITS = 1e-3, 1e3


@dataclass(frozen=True)
class Work:
    """One request to a model: how many ``structures`` and ``atoms``, and the estimated ``seconds`` that it takes."""

    structures: int
    atoms: int
    seconds: float


class Estimator:
    """Estimates the work of one model on its present device.

    Args:
        cost: its calibration; None where there is none.
        cutoff: A, radius of its neighbour graph.
        pass_atoms: atoms of one full forward pass.
    """

    def __init__(self, cost: Cost | None, cutoff: float, pass_atoms: int) -> None:
        self.cost = cost or DEFAULT
        self.cutoff = cutoff
        self.pass_atoms = pass_atoms

    def work(self, structures: Sequence[Structure]) -> Work:
        """What these structures take when they share full passes with others, as they do whenever there is a queue."""
        atoms = edges = 0
        for structure in structures:
            atoms += len(structure)
            edges += self.edges(structure)
        return Work(len(structures), atoms, self.cost.seconds(atoms, edges, atoms / self.pass_atoms))

    def edges(self, structure: Structure) -> int:
        """Directed neighbour pairs, estimated; a structure that the model is going to refuse counts as having none."""
        return largest_edges((structure,), self.cutoff)


class Correction:
    """Observed over estimated seconds, a decaying average over work that was finished while other work waited for it.

    A model that nobody waits for says nothing about its throughput: a lone structure takes a whole pass and all latencies. While
    work waits, what is finished in a second is what the model does in a second for this gateway, whoever else is served beside it.
    """

    def __init__(self) -> None:
        self._observed = self._estimated = PRIOR_SECONDS
        self._since: float | None = None

    @property
    def factor(self) -> float:
        """What an estimated second takes, in s."""
        least, most = LIMITS
        return min(max(self._observed / max(self._estimated, 1e-9), least), most)

    def saturated(self, now: float) -> None:
        """Work waits from now on, if it did not before."""
        if self._since is None:
            self._since = now

    def finished(self, seconds: float, now: float) -> None:
        """Work that was estimated at ``seconds`` has been finished."""
        if self._since is None:
            return
        elapsed, self._since = now - self._since, now
        kept = math.exp(-elapsed / MEMORY_SECONDS)
        self._observed = kept * self._observed + elapsed
        self._estimated = kept * self._estimated + seconds

    def idle(self) -> None:
        """Nothing waits any more."""
        self._since = None
