"""What an adapter implements: ``load`` a checkpoint, build the ``graph`` of one structure, ``evaluate`` many graphs at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from forcefields.catalogue import Variant
from forcefields.neighbours import Neighbours
from forcegate.structure import Structure


@dataclass(frozen=True, eq=False)
class Normalised(Structure):
    """What ``graph`` is given: the same atoms in the same order, periodic along three independent right-handed vectors.

    Attributes:
        original: the structure as it was sent, for a model that treats molecules in another way than crystals.
        lists: its neighbour list by cutoff, kept by ``forcefields.neighbours``.
    """

    original: Structure | None = None
    lists: dict[float, Neighbours] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Graph:
    """One structure, ready for a forward pass.

    Attributes:
        payload: the package's own graph; only the adapter looks inside.
        atoms: number of atoms.
        edges: number of directed neighbour pairs within the cutoff, the measure of cost and memory.
    """

    payload: Any
    atoms: int
    edges: int


@dataclass
class Result:
    """What a model says of one structure.

    Attributes:
        energy: eV, total.
        forces: float64 ``[N, 3]``, eV/A, or None when not asked for.
        stress: float64 ``[6]``, eV/A^3, Voigt xx yy zz yz xz xy, ASE's sign; of the periodic structure that was evaluated. None
            when not asked for, and from a model that has none.
        extra: further per-atom outputs of the contract by name, float64 ``[N]``.
    """

    energy: float
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)


class ForceField(ABC):
    """A loaded checkpoint.

    The runtime hands over structures that are already checked and normalised: at least one atom, supported elements, finite,
    no coincident atoms, periodic along three independent right-handed vectors, atoms inside the cell.
    """

    cutoff: float
    """Radius of the neighbour graph in A."""
    reads_neighbours: bool = True
    """Whether ``graph`` reads the neighbour list of ``cutoff``: the runtime then makes it first, and knows the number of pairs."""
    takes_cuequivariance: ClassVar[bool] = False
    """Whether ``load_with_cuequivariance`` is there."""
    takes_compile: ClassVar[bool] = False
    """Whether ``compile`` is there."""
    pads: ClassVar[bool] = False
    """Whether a pass is computed in one of a few sizes, which ``padded`` tells; the runtime then fills them."""
    elements: tuple[int, ...]
    """Atomic numbers that this checkpoint knows; the runtime compares them with the catalogue on load."""

    @classmethod
    @abstractmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> ForceField:
        """Reads the checkpoint, whose hash has been verified, onto ``device`` (``cpu`` or ``cuda:<index>``)."""

    @classmethod
    def load_with_cuequivariance(cls, checkpoint: Path, variant: Variant, device: str) -> ForceField:
        """As ``load``, with the equivariant layers of cuEquivariance, which the runtime has found installed."""
        raise NotImplementedError

    def compile(self) -> None:
        """Has torch compile the network for any number of atoms, pairs and structures; called once, before the first pass.

        What torch then compiles, it compiles during the passes of ``forcefields.runtime.compilation``.
        """
        raise NotImplementedError

    @abstractmethod
    def graph(self, structure: Normalised, head: str) -> Graph:
        """Builds the graph of one structure; ``head`` is empty for a model without heads."""

    def padded(self, atoms: int, edges: int) -> tuple[int, int]:
        """Atoms and directed pairs that a pass over so many computes, padding included. Asked often, so it has to be fast."""
        return atoms, edges

    @abstractmethod
    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
        """One forward pass over all ``graphs``; computes at least the named outputs and returns one result per graph, in order."""
