"""A guest in a host: three energies, one level, units that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from forcegate import errors
from forcegate.calculations.interaction_energy import InteractionEnergyParameters, interaction_energy
from forcegate.calculations.qmof_energy import QmofEnergyParameters, qmof_energy
from tests.unit.calculations.potentials import EPSILON, SIGMA, Together, fcc, lennard_jones

ATOM = Atoms("Ar")


def test_a_pair_of_atoms_has_the_energy_of_the_pair() -> None:
    host = Atoms("Ar", [[0, 0, 0]])
    parameters = InteractionEnergyParameters(guest=ATOM, placement="given", positions=((4.0, 0, 0), (0, 5.0, 0)), orientations=1)
    answer = interaction_energy(lennard_jones(cutoff=30.0), host, parameters)
    exact = 4 * EPSILON * ((SIGMA / 4) ** 12 - (SIGMA / 4) ** 6)
    assert answer.interaction_energy == pytest.approx(exact, abs=1e-7)  # the shift at 30 A is 4e-8 eV
    assert answer.interaction_energy == answer.energy_total - answer.energy_host - answer.energy_guest
    assert answer.interaction_energy_kJ_per_mol == pytest.approx(96.485 * answer.interaction_energy, rel=1e-4)
    assert [site.distance for site in answer.sites] == pytest.approx([4.0, 5.0])


def test_relaxation_finds_the_minimum_of_the_pair() -> None:
    host = Atoms("Ar", [[0, 0, 0]])
    parameters = InteractionEnergyParameters(guest=ATOM, placement="given", positions=((4.5, 0, 0),), relax=True, fmax=1e-5)
    answer = interaction_energy(lennard_jones(cutoff=30.0), host, parameters)
    assert answer.interaction_energy == pytest.approx(-EPSILON, abs=1e-6)
    assert answer.best_distance == pytest.approx(2 ** (1 / 6) * SIGMA, abs=0.01)
    assert answer.deformation_energy == pytest.approx(0, abs=1e-9)  # atoms have no shape


def test_a_vacancy_is_the_best_place_in_a_crystal() -> None:
    host = fcc(5.25, repeat=2)
    hole = host.positions[10].copy()
    del host[10]
    parameters = InteractionEnergyParameters(guest=ATOM, spacing=1.3125, min_distance=1.0)  # 8 points a side: one is the hole
    answer = interaction_energy(lennard_jones(), host, parameters)
    assert np.allclose(answer.best_site, hole, atol=1e-6)
    assert answer.placements == 8**3
    assert len(answer.sites) + answer.overlapping == answer.placements
    energies = [site.interaction_energy for site in answer.sites]
    assert energies == sorted(energies)
    assert all(site.distance >= 1.0 for site in answer.sites)


def test_all_placements_go_out_together() -> None:
    forces = Together(lambda: lennard_jones(), 4)
    parameters = InteractionEnergyParameters(guest=ATOM, placement="random", count=20, min_distance=1.0)
    answer = interaction_energy(forces, fcc(8.0), parameters)
    assert forces.batches == [len(answer.sites) + 2]  # and the host and the guest alone
    assert len(answer.sites) > 4


def test_guests_keep_their_shape_in_every_orientation() -> None:
    from forcegate.calculations.interaction_energy import placements_of

    guest = molecule("CO2")
    made = placements_of(fcc(5.3), guest, InteractionEnergyParameters(guest=guest, placement="random", count=3, orientations=4))
    assert len(made) == 12
    for each in made:
        assert np.allclose(each.guest.get_all_distances(), guest.get_all_distances())
        assert np.allclose(each.guest.get_center_of_mass(), each.centre)


def test_no_place_is_an_error() -> None:
    with pytest.raises(errors.InvalidRequest, match="nearer than"):
        interaction_energy(lennard_jones(), fcc(5.3), InteractionEnergyParameters(guest=ATOM, min_distance=6.0))


def test_qmof_energy_is_per_atom() -> None:
    atoms = fcc(5.3)
    answer = qmof_energy(lennard_jones(), atoms, QmofEnergyParameters(reference_energy=-1.0))
    assert answer.energy_per_atom == pytest.approx(answer.energy / 4)
    assert answer.error_per_atom == pytest.approx((answer.energy + 1.0) / 4)
