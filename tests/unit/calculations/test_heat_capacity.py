"""Phonons of a harmonic crystal that is solved by hand; imaginary modes are said aloud."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ase import Atoms
from ase.units import _amu, _e, _hplanck, _k, kB

from forcegate.calculations.forces import OneByOne, Point
from forcegate.calculations.heat_capacity import HeatCapacityParameters, heat_capacity
from forcegate.calculations.progress import Step
from tests.unit.calculations.potentials import fcc, lennard_jones, springs

K, A = 2.0, 5.3
"""Springs of 2 eV/A^2 between the neighbours of an fcc crystal of argon atoms."""
GAS_CONSTANT = 8.314462618


def exact_frequencies(mesh: int) -> np.ndarray:
    """THz, ``[mesh^3, 3]``: D(q) = (k/m) sum over 12 neighbours of n n^T (1 - cos q.R) (Ashcroft and Mermin, chapter 22)."""
    neighbours = np.array(list(np.ndindex(3, 3, 3))) - 1.0
    neighbours = neighbours[np.abs(neighbours).sum(axis=1) == 2] * A / 2
    units = neighbours / np.linalg.norm(neighbours, axis=1)[:, None]
    fractions = np.array(list(np.ndindex(mesh, mesh, mesh))) / mesh
    primitive = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * A / 2
    q = 2 * np.pi * fractions @ np.linalg.inv(primitive).T
    d = np.einsum("na,nb,qn->qab", units, units, 1 - np.cos(q @ neighbours.T))
    squared = np.linalg.eigvalsh(d) * K / fcc(A).get_masses()[0]
    return np.sqrt(np.abs(squared) * _e / _amu * 1e20) / (2 * np.pi) / 1e12


def exact_thermal(temperature: float) -> tuple[float, float]:
    """Heat capacity in J/mol/K and free energy in eV of one atom, from a mesh of 30^3 without the centre."""
    nu = exact_frequencies(30)[1:].ravel() * 1e12
    x = _hplanck * nu / (_k * temperature)
    capacity = GAS_CONSTANT * (x**2 * np.exp(x) / (np.exp(x) - 1) ** 2).mean() * 3
    free = 3 * (_hplanck * nu / 2 / _e + kB * temperature * np.log(1 - np.exp(-x))).mean()
    return float(capacity), float(free)


@pytest.fixture(scope="module")
def crystal():  # type: ignore[no-untyped-def]
    parameters = HeatCapacityParameters(temperatures=(30.0, 100.0, 3000.0), supercell=(2, 2, 2), displacement=0.005)
    return heat_capacity(springs(K, A / np.sqrt(2)), fcc(A), parameters)


def test_frequencies_are_those_of_the_dynamical_matrix(crystal) -> None:  # type: ignore[no-untyped-def]
    # At X the longitudinal mode is sqrt(8k/m), the highest of all. 1e-4 is what anharmonicity of 0.005 A leaves.
    highest = np.sqrt(8 * K / fcc(A).get_masses()[0] * _e / _amu * 1e20) / (2 * np.pi) / 1e12
    assert crystal.max_frequency == pytest.approx(highest, rel=1e-4)
    at_x = crystal.bands.frequencies[0][-1]
    assert crystal.bands.labels[0] == ("G", "X")
    assert at_x == pytest.approx([highest / np.sqrt(2), highest / np.sqrt(2), highest], rel=1e-4)
    assert not crystal.has_imaginary_modes
    assert crystal.warnings == ()


def test_thermal_properties_are_those_of_the_modes(crystal) -> None:  # type: ignore[no-untyped-def]
    for index, temperature in enumerate(crystal.temperatures):
        capacity, free = exact_thermal(temperature)
        assert crystal.heat_capacities_per_atom[index] == pytest.approx(capacity, rel=2e-3)  # two different meshes
        assert crystal.free_energies_per_atom[index] == pytest.approx(free, rel=2e-3, abs=1e-5)  # eV: in kJ/mol it is 96 times that
    assert crystal.heat_capacities_per_atom[-1] == pytest.approx(
        3 * GAS_CONSTANT, rel=2e-3
    )  # Dulong and Petit; (h nu/kT)^2/12 is 1e-3
    assert np.allclose(crystal.heat_capacities, 4 * crystal.heat_capacities_per_atom)
    # F = U - T S, and U is the classical 3kT at 3000 K.
    energy = crystal.free_energies_per_atom[-1] + 3000 * crystal.entropies_per_atom[-1] / 96485.33212
    assert energy == pytest.approx(3 * kB * 3000, rel=2e-3)


def test_the_density_of_states_counts_every_mode(crystal) -> None:  # type: ignore[no-untyped-def]
    assert np.trapezoid(crystal.dos, crystal.dos_frequencies) == pytest.approx(3, rel=0.01)


def test_imaginary_modes_are_reported() -> None:
    simple = Atoms("Ar", cell=np.eye(3) * 3.6, pbc=True)
    answer = heat_capacity(lennard_jones(), simple, HeatCapacityParameters(supercell=(4, 4, 4), mesh_length=40))
    assert answer.has_imaginary_modes
    assert answer.lowest_frequency < -0.1
    assert answer.imaginary_fraction > 0.01
    assert "no minimum" in answer.warnings[0]
    assert min(answer.frequencies.min(), *(band.min() for band in answer.bands.frequencies)) == answer.lowest_frequency


def test_all_displacements_go_out_together() -> None:
    batches: list[int] = []

    class Counting(OneByOne):
        parallel = 8

        def evaluate(self, structures: Sequence[Atoms]) -> list[Point]:
            batches.append(len(structures))
            return super().evaluate(structures)

    start = fcc(A)
    start.symbols[0] = "Kr"  # two kinds of sites, more displacements
    steps: list[Step] = []
    parameters = HeatCapacityParameters(supercell_length=10.0, mesh_length=30)
    answer = heat_capacity(Counting(springs(K, A / np.sqrt(2))), start, parameters, steps.append)
    assert answer.supercell == (2, 2, 2)
    assert batches == [answer.displacements + 1]
    assert answer.displacements > 1
    assert sum(step.phase == "displacements" for step in steps) == batches[0]
