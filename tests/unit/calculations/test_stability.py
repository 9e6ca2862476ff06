"""Dynamics: the right ensemble, pressures that are real, and a verdict that says why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.units import bar, fs, kB
from scipy.optimize import brentq

from forcegate import errors
from forcegate.calculations.stability import StabilityParameters, stability
from forcegate.calculations.states import State
from tests.unit.calculations.potentials import fcc, lattice_minimum, lennard_jones, nothing, springs

A0 = lattice_minimum()[0]
K, R = 2.0, 3.6
"""eV/A^2 and A: a crystal of springs between neighbours, whose forces at rest and whose modes are known."""


def gas(count: int = 100, side: float = 100.0) -> Atoms:
    return Atoms(f"Ar{count}", np.random.default_rng(0).random((count, 3)) * side, cell=[side] * 3, pbc=True)


def test_equipartition_of_a_harmonic_crystal_in_nvt() -> None:
    parameters = StabilityParameters(
        temperature=60.0, timestep=4.0, friction=0.02, equilibration_steps=300, production_steps=1500, sample_interval=5, seed=1
    )
    answer = stability(springs(K, R), fcc(R * np.sqrt(2), repeat=2), parameters)
    # Each mode holds kT/2 as motion and kT/2 in its springs; of the springs' 96 modes three move nothing. 240 samples over 5 ps.
    assert answer.mean_temperature == pytest.approx(60.0, abs=3.0)
    assert answer.mean_energy == pytest.approx(93 * kB * 60.0 / 2, rel=0.05)
    assert answer.is_stable
    assert answer.coordination_start == 12
    assert {criterion.name for criterion in answer.criteria} == {"no_blow_up", "rmsd", "coordination_change"}


def test_a_harmonic_crystal_in_npt_has_the_volume_of_its_pressure() -> None:
    def pressure(r: float) -> float:
        return 2 * np.sqrt(2) * K * (R - r) / r**2  # eV/A^3: -dE/dV of 6 springs an atom, whose volume is r^3/sqrt(2)

    wanted = 20_000.0
    r = brentq(lambda length: pressure(length) - wanted * bar, 0.9 * R, R)
    start = fcc(r * np.sqrt(2), repeat=2)
    # The cell begins 0.3 % too large; the barostat has to find the volume, and the thermostat the rest of 20 K.
    start.set_cell(start.cell.array * 1.001, scale_atoms=True)
    parameters = StabilityParameters(
        temperature=20.0, pressure=wanted, timestep=4.0, friction=0.02, equilibration_steps=100, production_steps=1000,
        thermostat_time=200.0, barostat_time=2000.0, sample_interval=5, seed=1,
    )  # fmt: skip
    answer = stability(springs(K, R), start, parameters)
    assert answer.mean_volume == pytest.approx(32 * r**3 / np.sqrt(2), rel=1e-3)
    assert answer.mean_pressure == pytest.approx(wanted, rel=0.02)
    assert abs(answer.energy_drift) < 0.1


def test_the_pressure_has_its_kinetic_part() -> None:
    # Without forces the pressure is N kT / V and nothing else. A pressure from the virial alone would be 0.
    parameters = StabilityParameters(temperature=300.0, timestep=2.0, equilibration_steps=0, production_steps=100, seed=2)
    atoms = gas()
    answer = stability(nothing(), atoms, parameters)
    assert answer.mean_pressure is not None
    ideal = len(atoms) * kB * answer.mean_temperature / atoms.get_volume() / bar
    assert answer.mean_pressure == pytest.approx(ideal, rel=0.01)  # centre of mass and correlation of T with itself only
    assert answer.mean_pressure_GPa == pytest.approx(ideal / 10_000, rel=0.01)


def test_an_ideal_gas_in_npt_has_the_volume_of_its_pressure() -> None:
    atoms, temperature = gas(60, 60.0), 300.0
    pressure = len(atoms) * kB * temperature / atoms.get_volume() / bar
    parameters = StabilityParameters(
        temperature=temperature, pressure=pressure, timestep=10.0, equilibration_steps=50, production_steps=3000,
        barostat_time=300.0, thermostat_time=100.0, sample_interval=50, seed=3, max_rmsd=1e9,
    )  # fmt: skip
    answer = stability(nothing(), atoms, parameters)
    # The volume scatters by 1/sqrt(60) = 13 %, with a correlation of about 0.5 ps over 24 ps of 30.
    assert answer.mean_volume == pytest.approx(atoms.get_volume(), rel=0.1)
    assert answer.mean_pressure == pytest.approx(pressure, rel=0.1)
    assert np.std(answer.series["volume"]) > 0.02 * atoms.get_volume()


def test_npt_compresses_a_solid_to_its_pressure() -> None:
    parameters = StabilityParameters(
        temperature=20.0, pressure=5000.0, timestep=5.0, equilibration_steps=200, production_steps=3000, seed=4
    )
    answer = stability(lennard_jones(), fcc(A0, repeat=2), parameters)
    assert answer.ensemble == "npt"
    # 5 kbar on a solid of 30 kbar and B' = 8: P = B/B' ((V0/V)^B' - 1) gives V = 0.90 V0, a little more for the thermal expansion.
    assert answer.volume_change_percent == pytest.approx(-9.5, abs=2.0)
    assert answer.mean_pressure == pytest.approx(5000, abs=400)  # standard error of 12 ps of 32 atoms, three times
    assert abs(answer.energy_drift) < 1.0  # the extended energy is conserved
    unloaded = stability(lennard_jones(), fcc(A0, repeat=2), StabilityParameters(temperature=20.0, timestep=5.0,
                         equilibration_steps=200, production_steps=500, seed=4))  # fmt: skip
    assert unloaded.ensemble == "nvt"
    assert unloaded.volume_change_percent == 0


def test_a_pressure_without_effect_is_refused() -> None:
    with pytest.raises(errors.InvalidRequest, match="no effect"):
        StabilityParameters(pressure=1.0, ensemble="nvt")
    with pytest.raises(errors.InvalidRequest, match="periodic"):
        stability(lennard_jones(), Atoms("Ar2", [[0, 0, 0], [3.8, 0, 0]]), StabilityParameters(pressure=1.0))


def test_a_blow_up_is_an_early_answer() -> None:
    crushed = fcc(A0, repeat=2)
    crushed.positions[0] += 0.6 * (crushed.positions[1] - crushed.positions[0])  # 1.5 A from its neighbour
    answer = stability(lennard_jones(), crushed, StabilityParameters(timestep=2.0, production_steps=5000, seed=5))
    assert answer.blow_up is not None
    assert not answer.is_stable
    assert not answer.criteria[0].passed
    assert answer.equilibration_steps < 100
    answer.as_dict()


def test_forces_that_are_no_gradient_are_found_out_by_the_drift_of_the_energy() -> None:
    calculator = springs(K, R)
    conservative = calculator.calculate

    def turned(*arguments: object, **options: object) -> None:
        conservative(*arguments, **options)
        forces = calculator.results["forces"]
        calculator.results["forces"] = forces + 0.05 * np.cross(forces, [0.0, 0.0, 1.0])  # as a direct-force model may err

    parameters = StabilityParameters(temperature=60.0, ensemble="nve", timestep=4.0, equilibration_steps=100, production_steps=300,
                                     seed=1)  # fmt: skip
    start = fcc(R * np.sqrt(2), repeat=2)
    honest = stability(calculator, start, parameters)
    calculator.calculate = turned
    answer = stability(calculator, start, parameters)
    assert honest.is_stable
    assert abs(honest.energy_drift) < 0.1
    assert not answer.is_stable
    assert [criterion.name for criterion in answer.criteria if not criterion.passed] == ["energy_drift"]
    assert answer.drift_of == "total energy"


def test_atoms_that_part_are_a_change_of_coordination() -> None:
    pair = Atoms("Ar2", [[0, 0, 0], [2.0, 0, 0]])
    parameters = StabilityParameters(temperature=2000.0, ensemble="nve", timestep=5.0, equilibration_steps=0, production_steps=200,
                                     max_rmsd=1e9, seed=1)  # fmt: skip
    answer = stability(nothing(), pair, parameters)
    assert answer.coordination_start == 1.0
    assert answer.coordination_mean == pytest.approx(1.0 - answer.coordination_change)
    assert [criterion.name for criterion in answer.criteria if not criterion.passed] == ["coordination_change"]
    assert not answer.is_stable


def test_a_resumed_nve_run_keeps_its_energy(tmp_path: Path) -> None:
    parameters = StabilityParameters(
        temperature=20.0, ensemble="nve", timestep=4.0, equilibration_steps=100, production_steps=400, seed=6
    )
    states: list[State] = []
    start = fcc(A0, repeat=2)
    whole = stability(lennard_jones(), start, parameters, checkpoint=lambda make: states.append(make()))
    for step in (50, 300):  # in the equilibration, whose random numbers go on, and in the production
        states[step].save(tmp_path / "state.npz")
        resumed = stability(lennard_jones(), start, parameters, resume=State.load(tmp_path / "state.npz"))
        energies = resumed.series["conserved"]
        assert len(energies) == len(whole.series["conserved"]) == 41
        assert np.ptp(energies) / len(start) < 1e-5  # eV; the integrator's own oscillation at 4 fs
        assert np.allclose(energies, whole.series["conserved"], atol=1e-7)


@pytest.mark.parametrize("flexible", [False, True])
def test_a_resumed_npt_run_goes_on_as_it_would_have(flexible: bool) -> None:
    parameters = StabilityParameters(
        temperature=20.0, pressure=0.0, timestep=4.0, equilibration_steps=20, production_steps=100, seed=7, flexible_cell=flexible
    )
    states: list[State] = []
    start = fcc(A0, repeat=2)
    whole = stability(lennard_jones(), start, parameters, checkpoint=lambda make: states.append(make()))
    resumed = stability(lennard_jones(), start, parameters, resume=states[70])
    assert np.allclose(resumed.series["volume"], whole.series["volume"], rtol=1e-9)
    assert np.allclose(resumed.series["conserved"], whole.series["conserved"], atol=1e-8)


def test_drift_and_wrapping_are_no_displacement() -> None:
    # Atoms without forces fly through the walls of a small cell, again and again, and all of them drift together.
    atoms = gas(8, 4.0)
    parameters = StabilityParameters(ensemble="nve", timestep=5.0, equilibration_steps=0, production_steps=500, discard=0.0,
                                     max_rmsd=1e9, seed=1)  # fmt: skip
    answer = stability(nothing(), atoms, parameters)
    velocities = answer.final_atoms.get_velocities()
    flown = (velocities - velocities.mean(axis=0)) * 500 * 5.0 * fs
    assert answer.max_displacement == pytest.approx(np.linalg.norm(flown, axis=1).max(), rel=1e-9)
    assert answer.max_displacement > 4.0
    assert answer.final_rmsd == pytest.approx(np.sqrt((flown**2).sum(axis=1).mean()), rel=1e-9)
    assert np.linalg.norm(velocities.mean(axis=0)) * 500 * 5.0 * fs > 0.5
