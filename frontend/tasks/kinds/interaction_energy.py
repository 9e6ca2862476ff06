"""``interaction-energy``: a guest in a host."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from ase import Atoms
from pydantic import Field, model_validator

from forcegate.calculations import geometry
from forcegate.calculations.interaction_energy import InteractionEnergyAnswer, InteractionEnergyParameters, interaction_energy
from forcegate.calculations.placements import GUESTS
from forcegate.errors import InvalidRequest
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.kind import Calculation, TaskParameters, atoms_of

MOST_PLACEMENTS = 100_000
Point = Annotated[list[float], Field(min_length=3, max_length=3)]


class InteractionEnergy(TaskParameters):
    """Which guest, and where."""

    guest: Literal["H2", "CO2", "CH4", "N2", "H2O", "CO", "NH3"] | dict[str, Any] = Field(
        "CO2", description="A name, or the guest's atoms in any form of a structure."
    )
    placement: Literal["grid", "random", "given"] = Field("grid", description="Where the guest is put.")
    positions: list[Point] | None = Field(None, max_length=100_000, description="A, centres of mass, of `given` placements.")
    spacing: float = Field(1.5, ge=0.1, le=20, description="A, of the grid.")
    count: int = Field(50, ge=1, le=100_000, description="Random places.")
    orientations: int = Field(3, ge=1, le=1000, description="Of the guest at each place.")
    min_distance: float = Field(1.8, ge=0, le=10, description="A; placements that are nearer to the host are left out.")
    relax: bool = Field(False, description="Relax the guest in the rigid host, from the best placements.")
    relax_host: bool = Field(False, description="The host's atoms move as well.")
    relax_best: int = Field(3, ge=1, le=1000, description="Placements that are relaxed.")
    fmax: float = Field(0.02, gt=0, description="eV/A, of the relaxations.")
    max_steps: int = Field(300, ge=0, le=100_000, description="Of each relaxation.")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Of the random numbers.")

    @model_validator(mode="before")
    @classmethod
    def _name(cls, values: Any) -> Any:
        """A guest that is no name of ours is refused with the names there are, not with a union of types."""
        guest = values.get("guest") if isinstance(values, dict) else None
        if isinstance(guest, str) and guest not in GUESTS:
            raise InvalidRequest(
                f"There is no guest {guest[:40]!r}.", f"There are {', '.join(GUESTS)}; any other can be given as atoms."
            )
        return values

    def calculation(self) -> InteractionEnergyParameters:
        """The parameters of the calculation."""
        guest = self.guest if isinstance(self.guest, str) else atoms_of(self.guest)
        return replace(self.model_copy(update={"guest": "CO2"}).as_given(InteractionEnergyParameters), guest=guest)

    def check(self) -> None:
        super().check()
        self.calculation()

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:  # noqa: ARG002
        places = float(self.count if self.placement == "random" else len(self.positions or (1,)))
        if self.placement == "grid":
            extent = np.ptp(atoms.positions, axis=0) + 6 if not atoms.pbc.all() else geometry.heights(atoms.cell.array)
            places = float(np.prod(np.maximum(1.0, np.ceil(extent / self.spacing))))
        if (placements := places * self.orientations) > MOST_PLACEMENTS:
            raise InvalidRequest(
                f"There would be {placements:.2g} placements; {MOST_PLACEMENTS} are the most.",
                "Raise `spacing`, or ask for fewer places or orientations.",
            )


def calculate(job: Job) -> InteractionEnergyAnswer:
    """All placements at once."""
    asked = job.parameters
    assert isinstance(asked, InteractionEnergy)
    return interaction_energy(job.forces, job.atoms, asked.calculation(), job.progress, job.states)


KIND = Calculation(
    "interaction-energy", "Interaction energy of a guest with a host.", InteractionEnergy, calculate, InteractionEnergyAnswer
)
