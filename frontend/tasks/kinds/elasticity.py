"""``elasticity``: the stiffness tensor."""

from __future__ import annotations

from ase import Atoms
from pydantic import Field

from forcegate.calculations.elasticity import ElasticityAnswer, ElasticityParameters, elasticity
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters, require_cell


class Elasticity(TaskParameters):
    """Which strains. The cell is taken as it is given, unless `relax_cell` asks for more; one under stress is refused."""

    strain: float = Field(0.01, gt=0, le=0.1, description="Largest strain of one component (engineering strain for shear).")
    num_strains: int = Field(2, ge=1, le=20, description="Magnitudes, each with both signs.")
    relax_ions: bool = Field(True, description="Relax the atoms under each strain.")
    relax_cell: bool = Field(False, description="Relax the structure before, atoms and cell.")
    fmax: float = Field(0.001, gt=0, description="eV/A, of the relaxations.")
    max_steps: int = Field(1000, ge=0, le=100_000, description="Of each relaxation.")
    max_stress: float = Field(0.5, gt=0, description="GPa; a structure with a larger component of stress is refused.")

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:  # noqa: ARG002
        require_cell(atoms, "An elastic constant")


def calculate(job: Job) -> ElasticityAnswer:
    """All strains at once."""
    return elasticity(job.forces, job.atoms, job.parameters.as_given(ElasticityParameters), job.progress, job.states)


KIND = Calculation("elasticity", "Stiffness tensor and the moduli that follow from it.", Elasticity, calculate, ElasticityAnswer)
