"""``qmof-energy``: an energy against a reference."""

from __future__ import annotations

from pydantic import Field

from forcegate.calculations.qmof_energy import QmofEnergyAnswer, QmofEnergyParameters, qmof_energy
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters


class QmofEnergy(TaskParameters):
    """What to compare with."""

    reference_energy: float | None = Field(None, description="eV, total, of the same atoms.")


def calculate(job: Job) -> QmofEnergyAnswer:
    """One evaluation."""
    return qmof_energy(job.forces, job.atoms, job.parameters.as_given(QmofEnergyParameters), job.progress)


KIND = Calculation("qmof-energy", "Energy against a reference.", QmofEnergy, calculate, QmofEnergyAnswer)
