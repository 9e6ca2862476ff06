"""Relaxation of atoms and cell to a minimum of energy, or of enthalpy under a pressure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.units import GPa

from forcegate import errors
from forcegate.calculations import geometry
from forcegate.calculations.answers import Answer
from forcegate.calculations.forces import Forces, calculator_of, side_by_side
from forcegate.calculations.optimizers import FILTERS, OPTIMIZERS, captured, optimizer_of, restored
from forcegate.calculations.parameters import Parameters, flag, integer, number, one_of
from forcegate.calculations.progress import Progress, Step, ignore
from forcegate.calculations.states import NOWHERE, Checkpoint, State, States

KIND = "optimization"
LARGE_BYTES = 1 << 20
"""A part of a calculation has company: where the optimizer's memory is larger, such as the Hessian of 120 atoms, it is not kept."""


@dataclass(frozen=True)
class OptimizationParameters(Parameters):
    """How to relax.

    Attributes:
        fmax: the relaxation has converged when no atom's force is longer than this, eV/A. A variable cell is held to it as well:
            each row of the gradient of the enthalpy by the filter's strain, divided by the number of atoms, in eV.
        smax: further limit on the largest component of (stress + pressure), GPa; None for the limit by ``fmax`` alone.
        max_steps: steps at most.
        optimizer: ``BFGS``, ``LBFGS`` or ``FIRE``.
        cell_filter: ``frechet``, ``unit_cell`` or ``none``; None relaxes the cell (``frechet``) where the structure is periodic in
            all three directions.
        fix_cell: keep the cell, the same as ``cell_filter="none"``.
        pressure: GPa, on a variable cell.
        keep_symmetry: keep the space group of the start (ASE's FixSymmetry).
        symmetry_tolerance: A, for the space groups.
    """

    fmax: float = 0.05
    smax: float | None = None
    max_steps: int = 500
    optimizer: str = "BFGS"
    cell_filter: str | None = None
    fix_cell: bool = False
    pressure: float = 0.0
    keep_symmetry: bool = False
    symmetry_tolerance: float = 0.01

    def __post_init__(self) -> None:
        number("fmax", self.fmax, above=0)
        if self.smax is not None:
            number("smax", self.smax, above=0)
        integer("max_steps", self.max_steps, 0, 100_000)
        one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        one_of("cell_filter", self.cell_filter, (None, "none", *FILTERS))
        flag("fix_cell", self.fix_cell)
        flag("keep_symmetry", self.keep_symmetry)
        number("pressure", self.pressure, -1000, 1000)
        number("symmetry_tolerance", self.symmetry_tolerance, above=0)

    def filter_for(self, atoms: Atoms) -> str:
        """The filter that is used on ``atoms``.

        Raises:
            InvalidRequest: a variable cell or a pressure was asked for where there is none.
        """
        periodic = bool(atoms.pbc.all())
        chosen = "none" if self.fix_cell else self.cell_filter or ("frechet" if periodic else "none")
        if chosen != "none" and not periodic:
            raise errors.InvalidRequest(
                f"The cell cannot be relaxed: the structure has pbc={atoms.pbc.tolist()}, and stress needs all three.",
                'Leave `cell_filter` out, or set it to "none".',
            )
        if self.pressure and chosen == "none":
            raise errors.InvalidRequest(
                "A pressure has no effect on a cell that is kept.", "Relax the cell, or leave `pressure` out."
            )
        return chosen


@dataclass(frozen=True)
class OptimizationAnswer(Answer):
    """What came of a relaxation. The stress criterion and ``fmax`` are those of the parameters.

    Attributes:
        converged: whether every criterion holds at the structure that is returned.
        steps: steps that were made.
        initial_energy, final_energy, energy_change: potential energy, eV; the pressure's work is in none of them.
        final_forces_max: the largest norm of a force on one atom, eV/A, constraints applied.
        final_stress_max: the largest component of (stress + pressure), GPa; None without stress.
        initial_volume, final_volume: A^3, or None.
        rmsd: A, from the start, without drift and strain; ``max_displacement`` is that of the atom that moved most.
        spacegroup_before, spacegroup_after: such as ``Fm-3m (225)``, or None unless periodic in all three directions.
        cell_filter: what was used.
        optimized_atoms: the structure at the end.
        trajectory: one entry for each step: step, energy, fmax, and volume where there is one.
    """

    converged: bool
    steps: int
    initial_energy: float
    final_energy: float
    energy_change: float
    final_forces_max: float
    final_stress_max: float | None
    initial_volume: float | None
    final_volume: float | None
    rmsd: float
    max_displacement: float
    spacegroup_before: str | None
    spacegroup_after: str | None
    cell_filter: str
    optimized_atoms: Atoms
    trajectory: tuple[dict[str, float], ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; ``final_atoms`` is a second name of ``optimized_atoms``."""
        plain = super().as_dict()
        return plain | {"final_atoms": plain["optimized_atoms"]}


def optimization(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: OptimizationParameters | None = None,
    progress: Progress = ignore,
    *,
    checkpoint: Checkpoint | None = None,
    resume: State | None = None,
    at_end: Callable[[State], None] | None = None,
    phase: str = "relaxation",
    part: int | None = None,
) -> OptimizationAnswer:
    """Relaxes ``atoms``, which are not changed; their constraints are kept.

    Args:
        checkpoint: called at every step; see ``states.Checkpoint``.
        resume: a state that this function handed out for the same ``atoms`` and parameters.
        at_end: given the state of the end; whoever goes on from it gets the same answer at once.
        phase, part: what ``progress`` is told.

    Raises:
        InvalidRequest: the parameters do not fit the structure.
        NonFiniteResult: energy, forces or stress are not finite.
    """
    parameters = parameters or OptimizationParameters()
    run = _Relaxation(calculator_of(source), atoms, parameters, progress, phase, part)
    if resume is not None:
        run.restore(resume)
        if resume.values.get("ended"):
            return run.answer()
    while not run.measure() and run.steps < parameters.max_steps:
        if checkpoint is not None:
            checkpoint(run.state)
        run.advance()
    if at_end is not None:
        at_end(run.end())
    return run.answer()


def relax_kept(
    source: BaseCalculator | Forces,
    atoms: Atoms,
    parameters: OptimizationParameters,
    progress: Progress,
    states: States,
    name: str,
    *,
    phase: str = "relaxation",
    part: int | None = None,
) -> OptimizationAnswer:
    """A relaxation that is one part of a calculation: it goes on from the state of that ``name``, and its end is kept there too.

    What follows rests on that end: a calculation that goes on has to find the same one.
    """
    keep = states.checkpoint(name)
    return optimization(
        source,
        atoms,
        parameters,
        progress,
        checkpoint=lambda make: keep(lambda: _lean(make())),
        resume=states.state(name),
        at_end=lambda state: states.keep_state(name, state),
        phase=phase,
        part=part,
    )


def _lean(state: State) -> State:
    """The state without the optimizer's memory where that is large; the optimizer builds it up again from there."""
    place = {name: state.arrays[name] for name in ("positions", "cell")}
    if sum(array.nbytes for array in state.arrays.values()) <= LARGE_BYTES:
        return state
    values = {name: state.values[name] for name in ("trajectory", "optimizer")}
    return replace(state, arrays=place, values=values | {"memory": False})


def relax_all(
    forces: Forces,
    structures: Sequence[Atoms],
    parameters: OptimizationParameters,
    progress: Progress = ignore,
    phase: str = "relaxation",
    states: States = NOWHERE,
    *,
    require: bool = True,
) -> list[OptimizationAnswer]:
    """Relaxes many structures, side by side where ``forces`` allows it; each has its state, named by the phase and its number.

    Raises:
        NotRelaxed: one of them did not converge, unless ``require`` is False; the sentence says which, and how far it came.
    """

    def relax(calculator: BaseCalculator, structure: Atoms, part: int, report: Progress) -> OptimizationAnswer:
        return relax_kept(calculator, structure, parameters, report, states, f"{phase}-{part}", phase=phase, part=part)

    answers = side_by_side(forces, structures, relax, progress)
    for part, answer in enumerate(answers):
        if require:
            require_converged(answer, parameters, f"structure {part} of {len(answers)} ({phase})")
    return answers


def require_converged(answer: OptimizationAnswer, parameters: OptimizationParameters, what: str) -> None:
    """Checks that a relaxation converged.

    Raises:
        NotRelaxed: it did not.
    """
    if not answer.converged:
        raise errors.NotRelaxed(
            f"The relaxation of {what} did not converge within {answer.steps} steps: "
            f"the largest force is {answer.final_forces_max:.2g} eV/A, the limit {parameters.fmax:.2g} eV/A."
        )


class _Relaxation:
    """One relaxation at work."""

    def __init__(
        self,
        calculator: BaseCalculator,
        start: Atoms,
        parameters: OptimizationParameters,
        progress: Progress,
        phase: str,
        part: int | None,
    ) -> None:
        if len(start) == 0:
            raise errors.EmptyStructure("The structure has no atoms.")
        self.start, self.parameters = start, parameters
        self.filter_name = parameters.filter_for(start)
        self.progress, self.phase, self.part = progress, phase, part
        self.atoms = start.copy()
        if parameters.keep_symmetry:
            _fix_symmetry(self.atoms, parameters.symmetry_tolerance)
        self.atoms.calc = calculator
        self.pressure = parameters.pressure * GPa
        self.optimizer, self.filter = optimizer_of(parameters.optimizer, self.atoms, self.filter_name, self.pressure)
        self.steps = 0
        self.trajectory: list[dict[str, float]] = []
        self.converged = False
        self.residual: float | None = None

    def measure(self) -> bool:
        """Records where the relaxation is, tells ``progress``, and says whether it has converged."""
        energy, fmax = float(self.atoms.get_potential_energy()), geometry.largest_norm(self.atoms.get_forces())
        residual = self.residual = self._residual_stress()
        if not np.isfinite([energy, fmax, 0.0 if residual is None else residual]).all():
            raise errors.NonFiniteResult(f"Energy, forces or stress were not finite at step {self.steps} of the relaxation.")
        volume = float(self.atoms.get_volume()) if self.atoms.pbc.all() else None
        record = {"step": self.steps, "energy": energy, "fmax": fmax} | ({} if volume is None else {"volume": volume})
        if not self.trajectory or self.trajectory[-1]["step"] != self.steps:
            self.trajectory.append(record)
        limits = self.parameters
        self.converged = (
            fmax <= limits.fmax
            and (self.filter is None or geometry.largest_norm(self.filter.get_forces()) <= limits.fmax)
            and (limits.smax is None or self.filter is None or residual is None or residual <= limits.smax)
        )
        self.progress(
            Step(self.phase, self.steps, limits.max_steps, self.part, energy=energy, fmax=fmax, volume=volume, atoms=self.atoms)
        )
        return self.converged

    def advance(self) -> None:
        """One step of the optimizer."""
        self.optimizer.step()
        self.steps += 1
        if not np.isfinite(self.atoms.positions).all() or not np.isfinite(self.atoms.cell.array).all():
            raise errors.NonFiniteResult(f"The optimizer moved atoms to infinity at step {self.steps}.")

    def state(self) -> State:
        """Where the relaxation is."""
        arrays, values = captured(self.optimizer)
        arrays |= {"positions": self.atoms.positions.copy(), "cell": self.atoms.cell.array.copy()}
        return State(
            KIND, self.steps, arrays, values | {"trajectory": list(self.trajectory), "optimizer": self.parameters.optimizer}
        )

    def end(self) -> State:
        """Where it ended, with what has been measured there and without the optimizer's memory."""
        arrays = {"positions": self.atoms.positions.copy(), "cell": self.atoms.cell.array.copy()}
        values = {"trajectory": list(self.trajectory), "optimizer": self.parameters.optimizer, "memory": False, "ended": True}
        return State(KIND, self.steps, arrays, values | {"converged": self.converged, "residual": self.residual})

    def restore(self, state: State) -> None:
        """Goes on from ``state``, or stands at the end that it holds."""
        state.belongs(KIND, len(self.atoms))
        if state.values["optimizer"] != self.parameters.optimizer:
            raise errors.InvalidRequest(
                f"The state is that of {state.values['optimizer']}, not of {self.parameters.optimizer}.", ""
            )
        self.steps, self.trajectory = state.step, list(state.values["trajectory"])
        self.converged, self.residual = state.values.get("converged", False), state.values.get("residual")
        # The filter measures strain from the cell that it was made with, so that is the start's and stays it.
        self.atoms.set_cell(state.arrays["cell"], scale_atoms=False, apply_constraint=False)
        self.atoms.set_positions(state.arrays["positions"], apply_constraint=False)
        if state.values.get("memory", True):
            restored(self.optimizer, dict(state.arrays), dict(state.values))

    def answer(self) -> OptimizationAnswer:
        """What has been reached."""
        final = self.atoms.copy()
        final.set_constraint(self.start.constraints)
        moved = geometry.displacements(self.start, final.positions, final.cell.array)
        first, last = self.trajectory[0], self.trajectory[-1]
        return OptimizationAnswer(
            converged=self.converged,
            steps=self.steps,
            initial_energy=first["energy"],
            final_energy=last["energy"],
            energy_change=last["energy"] - first["energy"],
            final_forces_max=last["fmax"],
            final_stress_max=self.residual,
            initial_volume=first.get("volume"),
            final_volume=last.get("volume"),
            rmsd=geometry.rms(moved),
            max_displacement=geometry.largest_norm(moved),
            spacegroup_before=geometry.spacegroup(self.start, self.parameters.symmetry_tolerance),
            spacegroup_after=geometry.spacegroup(final, self.parameters.symmetry_tolerance),
            cell_filter=self.filter_name,
            optimized_atoms=final,
            trajectory=tuple(self.trajectory),
        )

    def _residual_stress(self) -> float | None:
        """The largest component of stress + pressure, GPa."""
        if not self.atoms.pbc.all() or (self.filter is None and "stress" not in self.atoms.calc.results):
            return None
        stress = self.atoms.get_stress(voigt=False)
        return float(np.abs(stress + self.pressure * np.eye(3)).max() / GPa)


def _fix_symmetry(atoms: Atoms, tolerance: float) -> None:
    geometry.optional("spglib")
    if not atoms.pbc.all():
        raise errors.InvalidRequest(
            "Only a structure that is periodic in all three directions has a space group to keep.", "Leave `keep_symmetry` out."
        )
    from ase.constraints import FixSymmetry

    atoms.set_constraint([*atoms.constraints, FixSymmetry(atoms, symprec=tolerance)])
