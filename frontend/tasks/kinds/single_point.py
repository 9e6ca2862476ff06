"""``single-point``: energy, forces, stress and what else the model says, queued."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.calculators.calculator import all_changes
from pydantic import Field

from forcegate.calculations import geometry
from forcegate.calculations.answers import plain
from forcegate.calculations.forces import point
from forcegate.calculations.progress import Step
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters

ALWAYS = frozenset(("energy", "free_energy", "forces", "stress"))
"""Of every model; whatever else ASE's calculator has is a further output."""


class SinglePoint(TaskParameters):
    """What is wanted."""

    compute_forces: bool = Field(True, description="Whether forces are wanted.")
    compute_stress: bool = Field(True, description="Whether the stress is wanted.")


def calculate(job: Job) -> dict[str, Any]:
    """One evaluation, with every further output of the model that the dispersion leaves right."""
    asked = job.parameters
    assert isinstance(asked, SinglePoint)
    with job.calculator() as calculator:
        extra = [name for name in calculator.implemented_properties if name not in ALWAYS]
        atoms = job.atoms.copy()
        atoms.set_constraint()
        # Everything in one call: what is asked for later would be another one.
        if extra:
            calculator.calculate(atoms, ["energy", "forces", *extra], all_changes)  # type: ignore[attr-defined]
        found = point(atoms, calculator)
        further = {name: np.array(calculator.get_property(name, atoms)) for name in extra}
    job.progress(Step("energy", 1, 1, energy=found.energy))
    stress = found.stress if asked.compute_stress else None
    return {
        "energy": found.energy,
        "energy_per_atom": found.energy / len(atoms),
        "forces": plain(found.forces) if asked.compute_forces else None,
        "stress": plain(stress),
        "max_force": geometry.largest_norm(found.forces) if asked.compute_forces else None,
        **plain(further),
    }


KIND = Calculation("single-point", "Energy, forces and stress, and the model's further outputs.", SinglePoint, calculate)
