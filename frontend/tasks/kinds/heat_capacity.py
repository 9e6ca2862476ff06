"""``heat-capacity``: phonons, and what follows from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from ase import Atoms
from pydantic import Field

from forcegate.calculations import geometry
from forcegate.calculations.heat_capacity import HeatCapacityAnswer, HeatCapacityParameters, heat_capacity
from forcegate.errors import InvalidRequest, StructureTooLarge
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters, require_cell

MOST_QPOINTS = 1e6
"""Of a mesh, before symmetry: their frequencies are in memory, and in the answer."""


class HeatCapacity(TaskParameters):
    """Which temperatures, and how the phonons are made."""

    temperatures: list[Annotated[float, Field(ge=0, le=100_000)]] = Field(
        [100.0, 200.0, 300.0, 400.0, 500.0], min_length=1, max_length=10_000, description="K."
    )
    supercell: list[Annotated[int, Field(ge=1, le=50)]] | None = Field(
        [2, 2, 2],
        min_length=3,
        max_length=3,
        description="Multiples of the lattice vectors; null for the smallest with opposite faces `supercell_length` apart, which "
        "is what a small cell needs.",
    )
    supercell_length: float = Field(12.0, ge=1, le=200, description="A.")
    displacement: float = Field(0.01, ge=1e-4, le=0.5, description="A.")
    relax: bool = Field(True, description="Relax the structure before, atoms and cell, with its symmetry kept.")
    fmax: float = Field(0.001, gt=0, description="eV/A, of that relaxation.")
    max_steps: int = Field(1000, ge=0, le=100_000, description="Of that relaxation.")
    max_force: float = Field(0.05, gt=0, description="eV/A; a structure with a larger force is refused.")
    mesh_length: float = Field(100.0, ge=5, le=1000, description="A, for the mesh of q-points.")
    imaginary_threshold: float = Field(0.1, ge=0, le=100, description="THz; a frequency below minus this is imaginary.")
    symmetry_tolerance: float = Field(1e-3, gt=0, description="A.")

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:
        require_cell(atoms, "A calculation of phonons")
        cell = atoms.cell.array
        multiples = self.supercell or geometry.supercell_for(cell, self.supercell_length)
        if (size := len(atoms) * int(np.prod(multiples, dtype=float))) > max_atoms:
            raise StructureTooLarge(f"The supercell has {size} atoms; the service takes at most {max_atoms}.")
        points = np.prod(np.maximum(1.0, self.mesh_length * np.linalg.norm(np.linalg.inv(cell), axis=0)))
        if points > MOST_QPOINTS:
            raise InvalidRequest(f"The mesh has {points:.2g} q-points; {MOST_QPOINTS:.0e} are the most.", "Lower `mesh_length`.")


def calculate(job: Job) -> HeatCapacityAnswer:
    """All displacements at once; a supercell that is small for phonons is named in the warnings."""
    asked = job.parameters
    assert isinstance(asked, HeatCapacity)
    answer = heat_capacity(job.forces, job.atoms, asked.as_given(HeatCapacityParameters), job.progress, job.states)
    apart = float((geometry.heights(answer.relaxed_atoms.cell.array) * answer.supercell).min())
    if apart < 0.99 * asked.supercell_length and asked.supercell is not None:
        warning = (
            f"Opposite faces of the supercell are {apart:.1f} A apart; below {asked.supercell_length:g} A an atom meets its own "
            "images. `supercell: null` chooses a larger one."
        )
        answer = replace(answer, warnings=(*answer.warnings, warning))
    return answer


KIND = Calculation("heat-capacity", "Harmonic phonons and thermal properties.", HeatCapacity, calculate, HeatCapacityAnswer)
