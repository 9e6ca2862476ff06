"""``single-point``: energy, forces and stress, queued."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from forcegate.calculations import geometry
from forcegate.calculations.answers import plain
from forcegate.calculations.progress import Step
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters


class SinglePoint(TaskParameters):
    """What is wanted."""

    compute_forces: bool = Field(True, description="Whether forces are wanted.")
    compute_stress: bool = Field(True, description="Whether the stress is wanted.")


def calculate(job: Job) -> dict[str, Any]:
    """One evaluation."""
    asked = job.parameters
    assert isinstance(asked, SinglePoint)
    (point,) = job.forces.evaluate([job.atoms])
    job.progress(Step("energy", 1, 1, energy=point.energy))
    # A model says NaN for the stress of what is not periodic in all three directions.
    stress = point.stress if asked.compute_stress and job.atoms.pbc.all() else None
    return {
        "energy": point.energy,
        "energy_per_atom": point.energy / len(job.atoms),
        "forces": plain(point.forces) if asked.compute_forces else None,
        "stress": plain(stress),
        "max_force": geometry.largest_norm(point.forces) if asked.compute_forces else None,
    }


KIND = Calculation("single-point", "Energy, forces and stress.", SinglePoint, calculate)
