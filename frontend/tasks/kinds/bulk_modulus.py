"""``bulk-modulus``: an equation of state."""

from __future__ import annotations

from typing import Literal

from ase import Atoms
from pydantic import Field

from forcegate.calculations.bulk_modulus import BulkModulusAnswer, BulkModulusParameters, bulk_modulus
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters, require_cell


class BulkModulus(TaskParameters):
    """Which volumes, and what is fitted to them. The cell is taken as it is given, unless `relax_cell` asks for more."""

    strain_range: float = Field(0.06, gt=0, le=0.5, description="Volumetric: volumes from (1 - x) to (1 + x) of the structure's.")
    num_points: int = Field(7, ge=5, le=1000, description="Volumes.")
    relax_ions: bool = Field(True, description="Relax the atoms at each volume.")
    relax_cell: bool = Field(False, description="Relax the structure before, atoms and cell.")
    eos: Literal["birch_murnaghan", "vinet", "murnaghan", "poirier_tarantola"] = Field("birch_murnaghan", description="Equation.")
    fmax: float = Field(0.01, gt=0, description="eV/A, of the relaxations.")
    max_steps: int = Field(500, ge=0, le=100_000, description="Of each relaxation.")
    min_r2: float = Field(0.99, ge=0, le=1, description="A fit with a lower r2 is refused.")

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:  # noqa: ARG002
        require_cell(atoms, "A bulk modulus")


def calculate(job: Job) -> BulkModulusAnswer:
    """All volumes at once, and the fit."""
    return bulk_modulus(job.forces, job.atoms, job.parameters.as_given(BulkModulusParameters), job.progress, job.states)


KIND = Calculation(
    "bulk-modulus", "Energies at several volumes, and an equation of state.", BulkModulus, calculate, BulkModulusAnswer
)
