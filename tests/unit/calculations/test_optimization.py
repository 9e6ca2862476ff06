"""Relaxation: the right minimum, in the right units, and an honest answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms
from ase.units import GPa

from forcegate import errors
from forcegate.calculations.optimization import OptimizationParameters, optimization
from forcegate.calculations.progress import Step
from forcegate.calculations.states import State
from tests.unit.calculations.potentials import EPSILON, SIGMA, fcc, lattice_energy, lattice_minimum, lennard_jones

TIGHT = OptimizationParameters(fmax=1e-5, smax=1e-4)


def rattled() -> Atoms:
    atoms = fcc(5.4, repeat=2)
    atoms.rattle(0.1, seed=3)
    return atoms


def test_the_lattice_sum_is_that_of_the_textbook() -> None:
    # Without a cutoff: A12 = 12.13188, A6 = 14.45392 (Kittel), so E = -A6^2/(2 A12) eps and r0 = (2 A12/A6)^(1/6) sigma.
    a, energy, modulus = lattice_minimum(cutoff=120.0)
    assert a / SIGMA == pytest.approx(np.sqrt(2) * (2 * 12.13188 / 14.45392) ** (1 / 6), rel=2e-4)
    assert energy / EPSILON == pytest.approx(-8.610, abs=2e-3)  # what lies beyond 35 sigma
    assert modulus / EPSILON * SIGMA**3 == pytest.approx(75.2, rel=3e-3)  # the textbook's digits


@pytest.mark.parametrize("optimizer", ["BFGS", "LBFGS", "FIRE"])
def test_argon_relaxes_to_the_minimum_of_the_lattice_sum(optimizer: str) -> None:
    start = rattled()
    before = start.positions.copy()
    answer = optimization(lennard_jones(), start, OptimizationParameters(fmax=1e-4, smax=1e-3, optimizer=optimizer, max_steps=400))
    a, energy, _ = lattice_minimum()
    assert answer.converged
    assert answer.final_volume == pytest.approx(8 * a**3, rel=1e-3)  # B is 3 GPa: the rest of 1e-3 GPa is 4e-4 of the volume
    assert answer.final_energy / len(start) == pytest.approx(energy, abs=1e-6)
    assert answer.spacegroup_before == "P1 (1)"
    assert answer.spacegroup_after == "Fm-3m (225)"
    assert np.array_equal(start.positions, before)


def test_pressure_is_in_gpa_and_stress_is_not() -> None:
    answer = optimization(lennard_jones(), fcc(5.2), OptimizationParameters(fmax=1e-5, smax=1e-4, pressure=1.0))
    relaxed = answer.optimized_atoms
    relaxed.calc = lennard_jones()
    assert -relaxed.get_stress()[:3].mean() / GPa == pytest.approx(1.0, abs=1e-3)
    # P = -dE/dV from the lattice sum, a quarter of a^3 for each atom.
    a, h = relaxed.cell.lengths()[0], 1e-4
    slope = (lattice_energy(a + h) - lattice_energy(a - h)) / (2 * h) / (0.75 * a**2)
    assert -slope / GPa == pytest.approx(1.0, abs=2e-3)


def test_the_largest_force_is_a_norm_not_a_component() -> None:
    atoms = Atoms("Ar2", [[0, 0, 0], [2.1, 2.1, 2.1]])  # along a diagonal, where the norm is sqrt(3) times each component
    answer = optimization(lennard_jones(), atoms, OptimizationParameters(max_steps=0))
    atoms.calc = lennard_jones()
    component = np.abs(atoms.get_forces()).max()
    assert answer.final_forces_max == pytest.approx(np.sqrt(3) * component)
    # A limit between the two: a component would call this converged.
    limit = 1.3 * component
    assert not optimization(lennard_jones(), atoms, OptimizationParameters(fmax=limit, max_steps=0)).converged


def test_too_few_steps_are_not_called_converged() -> None:
    answer = optimization(lennard_jones(), rattled(), OptimizationParameters(fmax=1e-4, max_steps=2))
    assert not answer.converged
    assert answer.steps == 2
    assert answer.final_forces_max > 1e-4


def test_constraints_are_kept() -> None:
    start = rattled()
    start.set_constraint(FixAtoms(indices=[0, 5]))
    answer = optimization(lennard_jones(), start, OptimizationParameters(fmax=1e-3, fix_cell=True))
    assert answer.converged
    assert np.array_equal(answer.optimized_atoms.positions[[0, 5]], start.positions[[0, 5]])
    assert np.array_equal(answer.optimized_atoms.cell.array, start.cell.array)
    assert len(answer.optimized_atoms.constraints) == 1


def test_symmetry_is_kept_on_request() -> None:
    # Simple cubic is a saddle point: forces that are a little wrong, as a network's are, push the atoms off their sites.
    calculator = lennard_jones()
    exact = calculator.calculate
    noise = np.random.default_rng(1).normal(0, 2e-3, (8, 3))

    def noisy(*arguments: object, **options: object) -> None:
        exact(*arguments, **options)
        calculator.results["forces"] = calculator.results["forces"] + noise

    calculator.calculate = noisy
    simple = Atoms("Ar", cell=np.eye(3) * 3.6, pbc=True) * (2, 2, 2)
    how = {"fmax": 1e-3, "smax": 0.05, "max_steps": 60}
    broken = optimization(calculator, simple, OptimizationParameters(**how))
    kept = optimization(calculator, simple, OptimizationParameters(**how, keep_symmetry=True))
    assert (broken.spacegroup_before, broken.spacegroup_after == "Pm-3m (221)") == ("Pm-3m (221)", False)
    assert kept.converged
    assert kept.spacegroup_before == kept.spacegroup_after == "Pm-3m (221)"
    assert kept.final_volume != pytest.approx(simple.get_volume(), rel=1e-3)  # the cell has moved all the same


def test_both_cell_filters_end_in_the_same_cell_and_none_keeps_it() -> None:
    start = fcc(5.4)
    found = {}
    for name in ("frechet", "unit_cell", "none"):
        answer = optimization(lennard_jones(), start, OptimizationParameters(fmax=1e-4, smax=None if name == "none" else 1e-3,
                              cell_filter=name))  # fmt: skip
        assert answer.converged, name
        found[name] = answer.final_volume
    assert found["unit_cell"] == pytest.approx(found["frechet"], rel=1e-3)
    assert found["none"] == pytest.approx(start.get_volume())


def test_the_rmsd_is_that_from_the_start() -> None:
    start = fcc(lattice_minimum()[0], repeat=2)
    start.positions[3] += [0.2, 0.0, 0.1]
    answer = optimization(lennard_jones(), start, OptimizationParameters(fmax=1e-5, fix_cell=True))
    # The atom goes back to its site, and the others do not move but with the mean of all.
    assert answer.rmsd == pytest.approx(np.sqrt(0.05 / 32 * (1 - 1 / 32)), rel=1e-3)


def test_translation_and_strain_are_no_displacement() -> None:
    start = fcc(5.6, repeat=2)
    answer = optimization(lennard_jones(), start, TIGHT)
    assert answer.converged
    assert answer.rmsd < 1e-6  # the cell shrinks by 7 %, and no atom leaves its site


def test_what_progress_raises_ends_the_relaxation_within_a_step() -> None:
    class Cancelled(Exception):
        pass

    seen: list[Step] = []

    def cancel(step: Step) -> None:
        seen.append(step)
        if step.step == 3:
            raise Cancelled

    calculator = lennard_jones()
    with pytest.raises(Cancelled):
        optimization(calculator, rattled(), OptimizationParameters(fmax=1e-6), cancel)
    assert [step.step for step in seen] == [0, 1, 2, 3]
    assert calculator.calls <= 5
    assert all(step.volume and step.fmax and step.energy for step in seen)


@pytest.mark.parametrize("optimizer", ["BFGS", "LBFGS", "FIRE"])
def test_a_resumed_relaxation_reaches_the_same_minimum(optimizer: str, tmp_path: Path) -> None:
    parameters = OptimizationParameters(fmax=1e-4, optimizer=optimizer, max_steps=400)
    states: list[State] = []
    whole = optimization(lennard_jones(), rattled(), parameters, checkpoint=lambda make: states.append(make()))
    half = states[len(states) // 2]
    half.save(tmp_path / "state.npz")
    resumed = optimization(lennard_jones(), rattled(), parameters, resume=State.load(tmp_path / "state.npz"))
    assert resumed.converged
    assert resumed.final_energy == pytest.approx(whole.final_energy, abs=1e-8)  # rounding, nothing else
    assert resumed.steps == whole.steps
    assert len(resumed.trajectory) == len(whole.trajectory)


def test_a_state_of_something_else_is_refused() -> None:
    states: list[State] = []
    optimization(lennard_jones(), rattled(), checkpoint=lambda make: states.append(make()))
    with pytest.raises(errors.InvalidRequest, match="32 atoms"):
        optimization(lennard_jones(), fcc(5.4), resume=states[0])


def test_a_pressure_without_effect_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="no effect"):
        optimization(lennard_jones(), fcc(5.4), OptimizationParameters(pressure=1.0, fix_cell=True))
    with pytest.raises(errors.InvalidRequest, match="pbc"):
        optimization(lennard_jones(), Atoms("Ar2", [[0, 0, 0], [3, 0, 0]]), OptimizationParameters(cell_filter="frechet"))
