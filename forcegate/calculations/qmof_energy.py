"""Energy of a structure against a reference, such as the DFT energies of QMOF (Rosen et al., Matter 4, 1578 (2021))."""

from __future__ import annotations

from dataclasses import dataclass

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from forcegate import errors
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, forces_of
from forcegate.calculations.parameters import Parameters, number
from forcegate.calculations.progress import Progress, Step, ignore


@dataclass(frozen=True)
class QmofEnergyParameters(Parameters):
    """Attributes:
    reference_energy: eV, total, of the same atoms; None where there is none to compare with.
    """

    reference_energy: float | None = None

    def __post_init__(self) -> None:
        if self.reference_energy is not None:
            number("reference_energy", self.reference_energy)


@dataclass(frozen=True)
class QmofEnergyAnswer(Answer):
    """Energies in eV, total and per atom. ``error`` is the model's energy less the reference.

    Two energies can be compared where they have the same zero: the model has to be trained on the functional, and the
    pseudopotentials, of the reference.
    """

    energy: float
    energy_per_atom: float
    reference_energy: float | None
    error: float | None
    error_per_atom: float | None
    atoms: int


def qmof_energy(
    source: BaseCalculator | Forces, atoms: Atoms, parameters: QmofEnergyParameters | None = None, progress: Progress = ignore
) -> QmofEnergyAnswer:
    """The energy of ``atoms``, which are not changed, and its distance from the reference."""
    parameters = parameters or QmofEnergyParameters()
    if len(atoms) == 0:
        raise errors.EmptyStructure("The structure has no atoms.")
    (point,) = forces_of(source).evaluate([atoms])
    progress(Step("energy", 1, 1, energy=point.energy))
    reference, count = parameters.reference_energy, len(atoms)
    error = None if reference is None else point.energy - reference
    return QmofEnergyAnswer(
        energy=point.energy,
        energy_per_atom=point.energy / count,
        reference_energy=reference,
        error=error,
        error_per_atom=None if error is None else error / count,
        atoms=count,
    )
