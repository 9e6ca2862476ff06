"""How a calculation tells where it is, and how it is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ase import Atoms


@dataclass(frozen=True)
class Step:
    """One step of a calculation.

    Attributes:
        phase: what is being done: ``relaxation``, ``equilibration``, ``production``, ``volumes``, ``displacements``, ``strains``,
            ``placements``.
        step: number of this step in its phase; the starting point is step 0.
        steps: steps that the phase takes at most, or None.
        part: number of the structure, where several are worked on at once.
        energy: potential energy, eV.
        fmax: the largest norm of a force on one atom, eV/A.
        temperature: K.
        volume: A^3.
        pressure: GPa, with the kinetic part.
        atoms: the structure as it is now. It goes on changing: copy what is to be kept.
    """

    phase: str
    step: int
    steps: int | None = None
    part: int | None = None
    energy: float | None = None
    fmax: float | None = None
    temperature: float | None = None
    volume: float | None = None
    pressure: float | None = None
    atoms: Atoms | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All that is known, without the structure."""
        return {name: value for name, value in vars(self).items() if name != "atoms" and value is not None}


Progress = Callable[[Step], None]
"""Called at every step, by one thread at a time. What it raises ends the calculation within one step and reaches the caller."""


def ignore(_: Step) -> None:
    """Progress that nobody looks at."""
