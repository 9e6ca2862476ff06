"""Many relaxations of one task, moved in step: what waits is evaluated together, so that it fills the model's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from forcegate.calculations import geometry
from forcegate.calculations.forces import Forces, Point
from forcegate.calculations.optimization import OptimizationAnswer
from forcegate.calculations.progress import Step
from forcegate.calculations.states import State
from forcegate.errors import ForcegateError
from forcegate.relaxation import InProcess, Relaxation, Relaxed, Settings, drive
from forcegate.relaxation.driver import Evaluated
from forcegate.relaxation.relaxation import EV_PER_A3_IN_GPA
from forcegate.structure import Structure
from frontend.tasks.kinds.job import Job
from frontend.tasks.kinds.optimization import Optimization

AT_ONCE = 64
"""Relaxations under way at once."""
KIND = "relaxation in step"
"""Of the states that are kept."""
CELLS = {"frechet": "frechet", "unit_cell": "unit", "none": "fixed"}

Record = list[dict[str, float]]


def possible(asked: Optimization) -> bool:
    """Whether relaxations with these parameters can be moved in step; symmetry and a limit on the stress cannot be kept there."""
    return asked.smax is None and not asked.keep_symmetry


def relax(forces: Forces, jobs: Sequence[Job]) -> dict[int | None, dict[str, Any]]:
    """The result, or the error, of each job by its number; what is finished is kept at once, and what is not has its state kept."""
    by_number = {job.number: job for job in jobs}
    records: dict[int, Record] = {}
    outcomes: dict[int | None, dict[str, Any]] = {}

    def stepped(relaxation: Relaxation) -> None:
        job, record = by_number[relaxation.index], records[relaxation.index]
        if relaxation.energy is None or relaxation.fmax is None:
            return
        # One that goes on has moved already; its energy belongs to the step before.
        step = relaxation.steps - (relaxation.result is None)
        record.append({"step": step, "energy": relaxation.energy, "fmax": relaxation.fmax})
        job.progress(Step("relaxation", step, relaxation.settings.max_steps, energy=relaxation.energy, fmax=relaxation.fmax))
        if relaxation.result is None:
            job.checkpoint(lambda: State(KIND, relaxation.steps, relaxation.state(), {"trajectory": list(record)}))

    for relaxed in drive(_begun(jobs, records), InProcess(evaluation(forces), AT_ONCE), AT_ONCE, stepped):
        job = by_number[relaxed.index]
        if relaxed.error is not None:
            outcome: dict[str, Any] = {"error": relaxed.error.as_dict()}
        else:
            outcome = _answer(job, relaxed, records.pop(relaxed.index)).as_dict()
            _save(job, relaxed)
        outcomes[job.number] = outcome
        if relaxed.error is None or not relaxed.error.retryable:
            job.context.keep(job.part, outcome)
    return outcomes


def evaluation(forces: Forces) -> Callable[[Sequence[Structure]], list[Evaluated]]:
    """Evaluates many structures together; one that cannot be evaluated has its error in its place."""

    def alone(atoms: Atoms) -> Evaluated:
        try:
            return _evaluated(forces.evaluate([atoms])[0])
        except ForcegateError as error:
            return Evaluated(error=error)

    def together(structures: Sequence[Structure]) -> list[Evaluated]:
        images = [structure.to_atoms() for structure in structures]
        try:
            return [_evaluated(point) for point in forces.evaluate(images)]
        except ForcegateError:
            # The error is that of one of them, or of all; each alone has its own.
            return [alone(atoms) for atoms in images]

    return together


def _evaluated(point: Point) -> Evaluated:
    return Evaluated(point.energy, point.forces, point.stress)


def _begun(jobs: Sequence[Job], records: dict[int, Record]) -> Iterator[Relaxation | Relaxed]:
    for job in jobs:
        asked = job.parameters
        assert isinstance(asked, Optimization)
        assert job.number is not None
        records[job.number] = []
        try:
            cell = CELLS[asked.calculation().filter_for(job.atoms)]
            settings = Settings(asked.fmax, asked.max_steps, asked.optimizer.lower(), cell, asked.pressure or 0.0)
            relaxation = Relaxation(job.number, job.atoms, settings)
        except ForcegateError as error:
            yield Relaxed(job.number, job.atoms, error=error)
            continue
        if (state := job.resume) is not None and state.kind == KIND:
            relaxation.restore(state.arrays)
            records[job.number] = list(state.values["trajectory"])
        yield relaxation


def _answer(job: Job, relaxed: Relaxed, record: Record) -> OptimizationAnswer:
    """The same as a relaxation alone would answer."""
    asked = job.parameters
    assert isinstance(asked, Optimization)
    assert relaxed.energy is not None
    assert relaxed.initial_energy is not None
    start, final, tolerance = job.atoms, relaxed.atoms, asked.symmetry_tolerance
    periodic = bool(start.pbc.all())
    moved = geometry.displacements(start, final.positions, final.cell.array)
    residual = None
    if relaxed.stress is not None and periodic:
        pressure = np.array([1.0, 1, 1, 0, 0, 0]) * (asked.pressure or 0.0)
        residual = float(np.abs(np.asarray(relaxed.stress) * EV_PER_A3_IN_GPA + pressure).max())
    return OptimizationAnswer(
        converged=relaxed.converged,
        steps=relaxed.steps,
        initial_energy=relaxed.initial_energy,
        final_energy=relaxed.energy,
        energy_change=relaxed.energy - relaxed.initial_energy,
        final_forces_max=geometry.largest_norm(np.asarray(relaxed.forces)),
        final_stress_max=residual,
        initial_volume=float(start.get_volume()) if periodic else None,
        final_volume=float(final.get_volume()) if periodic else None,
        rmsd=geometry.rms(moved),
        max_displacement=geometry.largest_norm(moved),
        spacegroup_before=geometry.spacegroup(start, tolerance),
        spacegroup_after=geometry.spacegroup(final, tolerance),
        cell_filter=next(name for name, word in CELLS.items() if word == relaxed.cell_filter),
        optimized_atoms=final,
        trajectory=tuple(record),
    )


def _save(job: Job, relaxed: Relaxed) -> None:
    """The relaxed structure as a file of its own among the artifacts."""
    atoms = relaxed.atoms.copy()
    results = {"energy": relaxed.energy, "forces": relaxed.forces, "stress": relaxed.stress}
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
    with (job.context.folder / f"{job.part}-optimized.extxyz").open("w") as file:
        write_extxyz(file, [atoms])
