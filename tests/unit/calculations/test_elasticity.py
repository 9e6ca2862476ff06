"""Stiffness: Cauchy's relation of pair potentials, and the bulk modulus by another way."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.units import GPa

from forcegate import errors
from forcegate.calculations.elasticity import ElasticityParameters, elasticity
from tests.unit.calculations.potentials import Together, fcc, lattice_minimum, lennard_jones

CUTOFF = 30.0


def test_argon_obeys_cauchy_and_has_its_bulk_modulus() -> None:
    answer = elasticity(lennard_jones(CUTOFF), fcc(5.3), ElasticityParameters(strain=0.004, relax_ions=False))
    c = answer.stiffness
    # Born and Huang: central forces, every atom a centre of symmetry, no pressure. 24 strains of 0.4 % leave 3e-4 of C.
    assert c[0, 1] == pytest.approx(c[3, 3], rel=2e-3)
    assert c[0, 0] == pytest.approx(c[1, 1], rel=1e-6)
    assert np.abs(c[:3, 3:]).max() < 1e-6 * c[0, 0]
    modulus = lattice_minimum(CUTOFF)[2] / GPa
    assert answer.bulk_modulus_vrh == pytest.approx(modulus, rel=3e-3)
    assert answer.bulk_modulus_voigt == pytest.approx(answer.bulk_modulus_reuss)  # equal in a cubic crystal
    assert answer.shear_modulus_voigt > answer.shear_modulus_reuss
    assert answer.is_stable
    assert answer.asymmetry < 1e-6


def test_relaxed_ions_are_softer_than_clamped_ones() -> None:
    # hcp under shear in its plane: its two atoms move against each other.
    hcp = Atoms("Ar2", scaled_positions=[[0, 0, 0], [1 / 3, 2 / 3, 0.5]], pbc=True,
                cell=[[3.7, 0, 0], [-1.85, 3.7 * np.sqrt(3) / 2, 0], [0, 0, 3.7 * np.sqrt(8 / 3)]])  # fmt: skip
    clamped = elasticity(lennard_jones(20.0), hcp, ElasticityParameters(relax_ions=False, num_strains=1, fmax=1e-5))
    relaxed = elasticity(lennard_jones(20.0), hcp, ElasticityParameters(num_strains=1, fmax=1e-5))
    assert relaxed.stiffness[5, 5] < 0.98 * clamped.stiffness[5, 5]
    assert relaxed.stiffness[5, 5] == pytest.approx((relaxed.stiffness[0, 0] - relaxed.stiffness[0, 1]) / 2, rel=0.01)


@pytest.mark.parametrize("relax_ions", [False, True])
def test_all_strains_go_out_together(relax_ions: bool) -> None:
    forces = Together(lambda: lennard_jones(), 13)
    parameters = ElasticityParameters(relax_cell=False, relax_ions=relax_ions, num_strains=1)
    elasticity(forces, fcc(lattice_minimum()[0]), parameters)
    # Both signs of six strains, and the structure itself.
    assert (forces.largest, forces.batches) == ((13, []) if relax_ions else (0, [13]))


def test_an_unstable_crystal_is_called_so() -> None:
    simple = Atoms("Ar", cell=np.eye(3) * 3.59, pbc=True) * (2, 2, 2)
    answer = elasticity(lennard_jones(), simple, ElasticityParameters(relax_ions=False, relax_cell=False, max_stress=5.0))
    assert not answer.is_stable
    assert answer.eigenvalues[0] < 0


def test_a_structure_under_stress_is_refused() -> None:
    with pytest.raises(errors.NotRelaxed, match="stress"):
        elasticity(lennard_jones(), fcc(4.9), ElasticityParameters(relax_cell=False, relax_ions=False))
