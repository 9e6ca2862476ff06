"""``stability``: molecular dynamics, and whether the structure holds together."""

from __future__ import annotations

from typing import Literal

from ase import Atoms
from pydantic import Field

from forcegate.calculations.progress import Step
from forcegate.calculations.stability import StabilityAnswer, StabilityParameters, stability
from forcegate.errors import InvalidRequest
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters, require_cell

MOST_SAMPLES = 100_000


class Stability(TaskParameters):
    """How to run, and what to call stable."""

    temperature: float = Field(300.0, gt=0, le=100_000, description="K.")
    pressure: float | None = Field(
        None, ge=-1e7, le=1e7, description="bar; where it is given, 0 too, the production is NPT. Null is NVT, or NPT at 0 bar."
    )
    timestep: float = Field(1.0, gt=0, le=20, description="fs.")
    equilibration_steps: int = Field(1000, ge=0, le=10**8, description="Langevin at constant volume.")
    production_steps: int = Field(5000, ge=1, le=10**8, description="Steps after that.")
    ensemble: Literal["nvt", "npt", "nve"] | None = Field(None, description="Of the production; null is `npt` with a pressure.")
    sample_interval: int = Field(10, ge=1, le=10**6, description="Steps between samples, which are frames of the trajectory.")
    friction: float = Field(0.01, gt=0, le=1, description="1/fs, of Langevin.")
    thermostat_time: float | None = Field(None, gt=0, description="fs, of NPT; null is 100 steps.")
    barostat_time: float | None = Field(None, gt=0, description="fs, of NPT; null is 1000 steps.")
    flexible_cell: bool = Field(False, description="NPT with the shape of the cell as a variable.")
    discard: float = Field(0.2, ge=0, le=0.9, description="Share of the production, at its start, that is in no average.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="Of the random numbers; the answer says which was drawn.")
    max_rmsd: float = Field(1.0, gt=0, description="A, over which the structure is not called stable.")
    max_coordination_change: float = Field(0.1, gt=0, description="Share of the mean coordination number.")
    max_volume_change: float = Field(10.0, gt=0, description="Per cent, in NPT.")
    max_energy_drift: float = Field(10.0, gt=0, description="meV/atom/ps.")

    def calculation(self) -> StabilityParameters:
        """The parameters of the calculation."""
        return self.as_given(StabilityParameters)

    def check(self) -> None:
        super().check()
        if self.production_steps > MOST_SAMPLES * self.sample_interval:
            raise InvalidRequest(
                f"The run would have more than {MOST_SAMPLES} samples, which are in memory and in the answer.",
                "Raise `sample_interval`.",
            )
        self.calculation()

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:  # noqa: ARG002
        if self.calculation().production_ensemble == "npt":
            require_cell(atoms, "NPT")


def calculate(job: Job) -> StabilityAnswer:
    """Runs; samples are frames of the trajectory, and positions, momenta, baths and random numbers are kept."""
    asked = job.parameters
    assert isinstance(asked, Stability)
    resume = job.resume
    before = asked.equilibration_steps
    with job.calculator() as calculator, job.trajectory(None if resume is None else resume.step) as trajectory:

        def report(step: Step) -> None:
            number = step.step + (before if step.phase == "production" else 0)
            if (number - before) % asked.sample_interval == 0:
                trajectory.add(number, step)
            job.progress(step)

        return stability(calculator, job.atoms, asked.calculation(), report, checkpoint=job.checkpoint, resume=resume)


KIND = Calculation("stability", "Molecular dynamics with criteria of stability.", Stability, calculate, StabilityAnswer)
