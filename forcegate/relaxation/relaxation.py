"""One relaxation as a state machine: it says which structure has to be evaluated next and is told what came out.

Nothing here knows where the numbers come from, or waits for them. ``driver`` moves many of these at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from forcegate import errors
from forcegate.relaxation.cell_filters import CELL_FILTERS, FixedCell
from forcegate.relaxation.optimizers import OPTIMIZERS, longest
from forcegate.structure import Structure, from_atoms

EV_PER_A3_IN_GPA = 160.2176634
"""GPa in 1 eV/A^3 (CODATA 2018, exact)."""


@dataclass(frozen=True)
class Settings:
    """How to relax.

    Attributes:
        fmax: eV/A. Converged is what has no larger force on an atom, nor on a row of the cell where that moves.
        max_steps: a structure that has taken so many is given back as it is, not converged.
        optimizer: ``fire``, ``lbfgs`` or ``bfgs``.
        cell: ``frechet``, ``unit`` or ``fixed``. Where a structure is not periodic in all three directions there is no stress, and
            its cell stays as it is.
        pressure: GPa, what the cell is pressed together by.

    Raises:
        InvalidRequest: a value is not one of these.
    """

    fmax: float = 0.05
    max_steps: int = 500
    optimizer: str = "fire"
    cell: str = "frechet"
    pressure: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("optimizer", self.optimizer, OPTIMIZERS), ("cell", self.cell, CELL_FILTERS)):
            if value not in known:
                raise errors.InvalidRequest(f"{name}={value!r} is not known.", f"It is one of {', '.join(known)}.")
        if not (np.isfinite(self.fmax) and self.fmax > 0):
            raise errors.InvalidRequest(f"fmax={self.fmax} is not a force above 0.", "Give it in eV/A, such as 0.05.")
        if self.max_steps < 0:
            raise errors.InvalidRequest(f"max_steps={self.max_steps} is below 0.", "0 evaluates the structures and moves none.")
        if not np.isfinite(self.pressure):
            raise errors.InvalidRequest(f"pressure={self.pressure} is not a number.", "Give it in GPa.")
        if self.pressure and self.cell == "fixed":
            raise errors.InvalidRequest("A pressure has no effect on a fixed cell.", "Let the cell move: cell frechet or unit.")

    def as_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


@dataclass
class Relaxed:
    """What has become of one structure.

    Attributes:
        index: place of the structure in the input.
        atoms: where it has come to: a new object, with the constraints and all else of the input. After an error, the structure
            that could not be evaluated.
        converged: no force is larger than ``fmax``.
        steps: that were taken; one evaluation more has been made.
        fmax: eV/A, the largest force in the end, on an atom or on a row of the cell, constraints applied.
        initial_energy: eV, of the input.
        energy: eV, in the end.
        forces: float64 ``[N, 3]``, eV/A, in the end, as the model gives them: constraints not applied.
        stress: float64 ``[6]``, eV/A^3, Voigt xx yy zz yz xz xy, ASE's sign; None unless periodic in all three directions.
        cell_filter: ``frechet``, ``unit`` or ``fixed``: what really was moved.
        error: why the relaxation ended before its time; None for one that has converged or taken ``max_steps``.
        provenance: model, head, checkpoint and what else names the origin of the numbers.
    """

    index: int
    atoms: Atoms
    converged: bool = False
    steps: int = 0
    fmax: float | None = None
    initial_energy: float | None = None
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    cell_filter: str = "fixed"
    error: errors.ForcegateError | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def pressure(self) -> float | None:
        """GPa, positive where the crystal wants to expand; None where there is no stress."""
        return None if self.stress is None else float(-self.stress[:3].mean() * EV_PER_A3_IN_GPA)

    def to_atoms(self) -> Atoms:
        """A copy of the final structure with energy, forces and stress attached, and in ``info`` what ``forcegate relax`` writes:
        converged, steps, fmax, energy_change, cell_filter, model, head, functional, dispersion, checkpoint_sha256.

        Raises:
            ForcegateError: the structure's own error, where it has one.
        """
        if self.error is not None:
            raise self.error
        assert self.energy is not None
        assert self.initial_energy is not None
        atoms = self.atoms.copy()
        results = {"energy": self.energy, "free_energy": self.energy, "forces": self.forces, "stress": self.stress}
        atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
        atoms.info |= {"converged": self.converged, "steps": self.steps, "fmax": self.fmax}
        atoms.info |= {"energy_change": self.energy - self.initial_energy, "cell_filter": self.cell_filter}
        for name in ("model", "head", "functional", "dispersion", "checkpoint_sha256"):
            if self.provenance.get(name):
                atoms.info[name] = self.provenance[name]
        return atoms


class Relaxation:
    """A relaxation under way.

    While ``result`` is None, evaluate ``structure`` (energy, forces and, where ``needs_stress``, stress) and call ``advance`` with
    the answer, or ``fail`` with an error.

    Args:
        index: its place among others.
        atoms: is copied; constraints are kept.
        settings: how to relax.

    Raises:
        InvalidStructure: the atoms cannot be evaluated at all, or a pressure is asked for where there is no stress.
    """

    def __init__(self, index: int, atoms: Atoms, settings: Settings) -> None:
        self.index, self.settings = index, settings
        self.atoms = atoms.copy()
        self.atoms.calc = None
        self.steps = 0
        self.fmax: float | None = None
        """The largest force at the last geometry that has been evaluated, eV/A."""
        self.energy: float | None = None
        self.initial_energy: float | None = None
        self.result: Relaxed | None = None
        self._first = from_atoms(atoms)
        periodic = bool(self._first.pbc.all()) and bool(self._first.cell.any(axis=1).all())
        if settings.pressure and not periodic:
            raise errors.InvalidStructure(
                "A pressure acts on a cell, and this structure is not periodic in all three directions.",
                "Relax it without a pressure.",
            )
        name = settings.cell if periodic else "fixed"
        self.cell_filter: FixedCell = CELL_FILTERS[name](self.atoms, settings.pressure / EV_PER_A3_IN_GPA)
        self.optimizer = OPTIMIZERS[settings.optimizer]()

    @property
    def structure(self) -> Structure:
        """What has to be evaluated next."""
        first = self._first
        positions, cell = self.atoms.positions.copy(), np.array(self.atoms.cell)
        return Structure(first.numbers, positions, cell, first.pbc, first.charge, first.spin)

    @property
    def needs_stress(self) -> bool:
        """Whether the next step depends on the stress."""
        return self.cell_filter.moves_cell

    def advance(self, energy: float, forces: np.ndarray, stress: np.ndarray | None = None) -> bool:
        """Takes the answer for ``structure`` and moves on.

        Args:
            energy: eV.
            forces: ``[N, 3]``, eV/A.
            stress: ``[6]``, eV/A^3, Voigt, ASE's sign; None where the structure has none.

        Returns:
            Whether there is a ``result`` now.
        """
        if self.needs_stress and stress is None:
            return self.fail(errors.EvaluationFailed("The model gave no stress for this structure, which moving its cell needs."))
        self.energy = energy
        if self.initial_energy is None:
            self.initial_energy = energy
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                pulls = self._pulls(forces, stress)
                self.fmax = longest(pulls)
                converged = self.fmax < self.settings.fmax
                if converged or self.steps >= self.settings.max_steps:
                    return self._finish(converged, forces, stress)
                x = self.cell_filter.x
                self._move(self.optimizer.step(x.ravel(), pulls.ravel()).reshape(x.shape))
        except (np.linalg.LinAlgError, FloatingPointError) as error:
            return self.fail(errors.EvaluationFailed(f"No further step can be taken from here: {error}.", NEXT))
        self.steps += 1
        return False

    def fail(self, error: errors.ForcegateError) -> bool:
        """Ends the relaxation with an error."""
        self.result = self._relaxed(error=error)
        return True

    def state(self) -> dict[str, np.ndarray]:
        """All that ``restore`` needs to go on from here along the same path."""
        energy = np.nan if self.initial_energy is None else self.initial_energy
        progress = {"progress": np.array([self.steps, energy], dtype=np.float64)}
        return progress | self.cell_filter.state() | self.optimizer.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up a state of a relaxation of the same atoms with the same settings."""
        steps, energy = state["progress"]
        self.steps, self.initial_energy = int(steps), None if np.isnan(energy) else float(energy)
        self.cell_filter.restore(state)
        self.optimizer.restore(state)

    def _pulls(self, forces: np.ndarray, stress: np.ndarray | None) -> np.ndarray:
        """The forces on all coordinates, ``[N, 3]`` or ``[N + 3, 3]``, with the constraints' say."""
        if self.atoms.constraints:
            forces, stress = forces.copy(), None if stress is None else stress.copy()
            for constraint in self.atoms.constraints:
                if stress is not None and hasattr(constraint, "adjust_stress"):
                    constraint.adjust_stress(self.atoms, stress)
                constraint.adjust_forces(self.atoms, forces)
        return self.cell_filter.forces(forces, stress)

    def _move(self, x: np.ndarray) -> None:
        if not np.isfinite(x).all():
            raise FloatingPointError("the optimizer's step is not finite")
        self.cell_filter.move(x)

    def _finish(self, converged: bool, forces: np.ndarray, stress: np.ndarray | None) -> bool:
        self.result = self._relaxed(converged=converged, energy=self.energy, forces=forces, stress=stress)
        return True

    def _relaxed(self, **outcome: Any) -> Relaxed:
        known: dict[str, Any] = {"steps": self.steps, "fmax": self.fmax, "initial_energy": self.initial_energy}
        return Relaxed(self.index, self.atoms, cell_filter=self.cell_filter.name, **known, **outcome)


NEXT = "Look at the structure there, and at its constraints; a smaller displacement at the start often helps."
