"""The equation of state: volumes, relaxed ions, and no fit where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from ase.units import GPa

from forcegate import errors
from forcegate.calculations.bulk_modulus import BulkModulusParameters, at_volumes, bulk_modulus, fit_equation_of_state
from tests.unit.calculations.potentials import Together, fcc, lattice_minimum, lennard_jones

SMOOTH = 30.0
"""A, a cutoff so long that the shells which cross it with the volume weigh nothing: at 8.5 A they bend the curve."""


@pytest.mark.parametrize("eos", ["birch_murnaghan", "vinet", "murnaghan", "poirier_tarantola"])
def test_argon_has_the_bulk_modulus_of_the_lattice_sum(eos: str) -> None:
    answer = bulk_modulus(lennard_jones(SMOOTH), fcc(5.3), BulkModulusParameters(strain_range=0.03, eos=eos))
    a, energy, modulus = lattice_minimum(SMOOTH)
    assert answer.bulk_modulus == pytest.approx(modulus / GPa, rel=0.01)  # third order in the strain, with B' near 8
    assert answer.equilibrium_volume == pytest.approx(a**3, rel=1e-4)
    assert answer.equilibrium_energy == pytest.approx(4 * energy, abs=1e-5)
    assert 7 < answer.bulk_modulus_derivative < 9  # 8 for 12-6 (m + n + 6)/3
    assert answer.bulk_modulus_error < 0.05 * answer.bulk_modulus
    assert answer.as_dict()["r_squared"] == answer.fitting_r2 > 0.9999


def test_the_strain_is_that_of_the_volume() -> None:
    start = fcc(5.3)
    ratios = [each.get_volume() / start.get_volume() for each in at_volumes(start, 0.06, 7)]
    # 6 % of every length would be 0.83 to 1.19 of the volume.
    assert ratios == pytest.approx([0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06])


def test_ions_are_relaxed_at_each_volume() -> None:
    a, energy, modulus = lattice_minimum(SMOOTH)
    start = fcc(a)
    start.rattle(0.15, seed=1)
    parameters = BulkModulusParameters(strain_range=0.03, relax_cell=False, fmax=1e-4)
    relaxed = bulk_modulus(lennard_jones(SMOOTH), start, parameters)
    assert relaxed.equilibrium_energy / 4 == pytest.approx(energy, abs=1e-6)
    assert relaxed.bulk_modulus == pytest.approx(modulus / GPa, rel=0.01)
    frozen = at_volumes(start, 0.03, 7)[3]
    frozen.calc = lennard_jones(SMOOTH)
    assert frozen.get_potential_energy() / 4 > energy + 1e-3


@pytest.mark.parametrize("relax_ions", [False, True])
def test_all_volumes_go_out_together(relax_ions: bool) -> None:
    forces = Together(lambda: lennard_jones(), 8)
    parameters = BulkModulusParameters(relax_cell=False, relax_ions=relax_ions, num_points=8)
    bulk_modulus(forces, fcc(lattice_minimum()[0]), parameters)
    assert (forces.largest, forces.batches) == ((8, []) if relax_ions else (0, [8]))


def test_a_minimum_outside_of_the_range_is_not_fitted() -> None:
    with pytest.raises(errors.FitFailed, match="end of the range") as caught:
        bulk_modulus(lennard_jones(), fcc(5.8), BulkModulusParameters(relax_cell=False))
    points = caught.value.points
    assert len(points["volumes"]) == len(points["energies"]) == 7
    assert caught.value.as_dict()["points"] == points


@pytest.mark.parametrize(
    ("energies", "reason"),
    [
        ([1.0, 0.0, 1.0, 0.0, 1.0, 0.2, 1.0], "r2|no minimum"),
        ([0.0, 1.0, 2.0, 3.0, 2.0, 1.0, 0.5], "end of the range"),
        ([3.0, float("nan"), 0.0, float("nan"), 3.0, float("nan"), 9.0], "points"),
    ],
)
def test_nonsense_is_not_fitted_and_no_r2_is_invented(energies: list[float], reason: str) -> None:
    with pytest.raises(errors.FitFailed, match=reason) as caught:
        fit_equation_of_state(np.linspace(60, 72, 7), np.array(energies), "birch_murnaghan", 0.99)
    assert len(caught.value.points["energies"]) == 7


def test_the_confidence_grows_with_the_scatter() -> None:
    from ase.eos import birchmurnaghan

    volumes = np.linspace(60, 72, 9)
    exact = birchmurnaghan(volumes, -1.0, 0.5, 4.5, 66.0)
    clean = fit_equation_of_state(volumes, exact, "birch_murnaghan", 0.99)
    assert (clean.modulus, clean.derivative, clean.volume) == pytest.approx((0.5, 4.5, 66.0), rel=1e-6)
    inside = 0
    for seed in range(40):
        noisy = exact + np.random.default_rng(seed).normal(0, 1e-3, 9)
        fit = fit_equation_of_state(volumes, noisy, "birch_murnaghan", 0.9)
        inside += abs(fit.modulus - 0.5) < fit.errors[1]
    assert 34 <= inside <= 40  # 95 % of 40, less three standard deviations of a binomial
