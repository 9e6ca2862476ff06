"""The comparison of models: zeros of energy cancel, disagreement is measured as its documentation says."""

from __future__ import annotations

import numpy as np
import pytest

from frontend.merge import GPA_PER_EV_A3, Outcome, atomization_energy_per_atom, compare

NUMBERS = np.array([11, 17, 17])


def outcome(model: str, energy: float, isolated: dict[int, float], **more: object) -> Outcome:
    return Outcome(model, "PBE", energy, isolated=isolated, **more)  # type: ignore[arg-type]


def test_a_shift_of_a_models_zero_changes_nothing() -> None:
    plain = outcome("a", -12.0, {11: -1.0, 17: -2.0})
    shifted = outcome("b", -12.0 + 1 * 100 + 2 * 30, {11: -1.0 + 100, 17: -2.0 + 30})
    energy = compare(NUMBERS, [plain, shifted], {})["energy"]
    assert energy["atomization_energy_per_atom"]["a"] == pytest.approx((-12.0 + 1.0 + 4.0) / 3)
    assert energy["pairs"] == [{"models": ["a", "b"], "difference_per_atom": pytest.approx(0.0, abs=1e-12)}]


def test_without_an_isolated_atom_there_is_no_aligned_energy() -> None:
    assert atomization_energy_per_atom(NUMBERS, -12.0, {11: -1.0}) is None
    energy = compare(NUMBERS, [outcome("a", -12.0, {11: -1.0}), outcome("b", -12.0, {11: -1.0, 17: -2.0})], {})["energy"]
    assert energy["atomization_energy_per_atom"]["a"] is None
    assert energy["pairs"] == []


def test_forces() -> None:
    one = np.zeros((3, 3))
    one[0] = 1.0, 0.0, 0.0
    other = np.zeros((3, 3))
    other[0] = 0.0, 2.0, 0.0
    forces = compare(NUMBERS, [outcome("a", 0, {}, forces=one), outcome("b", 0, {}, forces=other)], {})["forces"]
    (pair,) = forces["pairs"]
    assert pair["rmse"] == pytest.approx(np.sqrt((1 + 4) / 9))
    assert (pair["max"], pair["max_atom"]) == (pytest.approx(np.sqrt(5)), 0)
    assert pair["cosine"] == pytest.approx(0.0)
    # Each of two models is half their distance from the mean.
    np.testing.assert_allclose(forces["spread_per_atom"], [np.sqrt(5) / 2, 0, 0])
    assert forces["spread_max_atom"] == 0


def test_the_direction_of_vanishing_forces_is_not_given() -> None:
    zero, some = np.zeros((3, 3)), np.ones((3, 3))
    forces = compare(NUMBERS, [outcome("a", 0, {}, forces=zero), outcome("b", 0, {}, forces=some)], {})["forces"]
    assert forces["pairs"][0]["cosine"] is None


def test_equal_forces_agree_entirely_and_opposite_ones_not_at_all() -> None:
    some = np.random.default_rng(0).normal(size=(3, 3))
    outcomes = [outcome("a", 0, {}, forces=some), outcome("b", 0, {}, forces=some), outcome("c", 0, {}, forces=-some)]
    pairs = {tuple(pair["models"]): pair for pair in compare(NUMBERS, outcomes, {})["forces"]["pairs"]}
    assert pairs["a", "b"]["rmse"] == 0.0
    assert pairs["a", "b"]["cosine"] == pytest.approx(1.0)
    assert pairs["a", "c"]["cosine"] == pytest.approx(-1.0)


def test_stress_in_both_units_and_the_sign_of_pressure() -> None:
    hydrostatic = np.array([0.01, 0.01, 0.01, 0.0, 0.0, 0.0])
    stress = compare(NUMBERS, [outcome("a", 0, {}, stress=np.zeros(6)), outcome("b", 0, {}, stress=hydrostatic)], {})["stress"]
    (pair,) = stress["pairs"]
    assert pair["max"] == pytest.approx(0.01)
    assert pair["max_gpa"] == pytest.approx(0.01 * GPA_PER_EV_A3)
    # Tension is positive stress and negative pressure.
    assert pair["pressure_difference_gpa"] == pytest.approx(-0.01 * GPA_PER_EV_A3)


def test_one_model_or_none_can_be_compared_with_nothing() -> None:
    alone = compare(NUMBERS, [outcome("a", -12.0, {11: -1.0, 17: -2.0}, forces=np.ones((3, 3)))], {"b": [11]})
    assert alone["forces"] is None
    assert alone["stress"] is None
    assert alone["elements_outside"] == {"b": ["Na"]}
    assert compare(NUMBERS, [], {})["models"] == []
