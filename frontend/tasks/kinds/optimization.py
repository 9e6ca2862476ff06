"""``optimization``: a structure to its minimum."""

from __future__ import annotations

from typing import Literal

from ase import Atoms
from pydantic import Field

from forcegate.calculations.optimization import OptimizationAnswer, OptimizationParameters, optimization
from forcegate.calculations.progress import Step
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters


class Optimization(TaskParameters):
    """How to relax."""

    fmax: float = Field(0.05, gt=0, description="eV/A; converged is what has no larger force on an atom, see docs/calculations.md.")
    smax: float | None = Field(None, gt=0, description="GPa; further limit on the largest component of stress + pressure.")
    max_steps: int = Field(500, ge=0, le=100_000, description="Steps at most; what needs more is answered with `converged: false`.")
    optimizer: Literal["BFGS", "LBFGS", "FIRE"] = Field("BFGS", description="ASE's optimizer.")
    fix_cell: bool = Field(False, description='Keep the cell; the same as `"cell_filter": "none"`.')
    cell_filter: Literal["frechet", "unit_cell", "none"] | None = Field(
        None, description="What moves the cell; null is `frechet` where the structure is periodic in all three directions."
    )
    pressure: float | None = Field(None, ge=-1000, le=1000, description="GPa, on a cell that moves.")
    keep_symmetry: bool = Field(False, description="Keep the space group of the start.")
    symmetry_tolerance: float = Field(0.01, gt=0, description="A, for the space groups.")
    trajectory_interval: int = Field(1, ge=1, description="Steps between two frames of the trajectory.")

    def calculation(self) -> OptimizationParameters:
        """The parameters of the calculation."""
        return self.model_copy(update={"pressure": self.pressure or 0.0}).as_given(OptimizationParameters)

    def check(self) -> None:
        super().check()
        self.calculation()

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:  # noqa: ARG002
        self.calculation().filter_for(atoms)


def calculate(job: Job) -> OptimizationAnswer:
    """Relaxes; every step is a frame of the trajectory, and the optimizer's memory is kept."""
    asked = job.parameters
    assert isinstance(asked, Optimization)
    resume = job.resume
    with job.calculator() as calculator, job.trajectory(None if resume is None else resume.step) as trajectory:

        def report(step: Step) -> None:
            if step.step % asked.trajectory_interval == 0:
                trajectory.add(step.step, step)
            job.progress(step)

        return optimization(calculator, job.atoms, asked.calculation(), report, checkpoint=job.checkpoint, resume=resume)


KIND = Calculation("optimization", "Atoms and cell to a minimum.", Optimization, calculate, OptimizationAnswer)
