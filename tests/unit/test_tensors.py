"""Structures into padded tensors and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forcegate import contract
from forcegate.structure import Structure
from forcegate.tensors import pack, unpack

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    count = draw(st.integers(0, 6))
    return Structure(
        draw(arrays(np.int32, count, elements=st.integers(1, 118))),
        draw(arrays(np.float64, (count, 3), elements=numbers)),
        draw(arrays(np.float64, (3, 3), elements=numbers)),
        draw(arrays(np.bool_, 3)),
        draw(numbers),
        draw(st.integers(0, 100)),
    )


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(structures(), min_size=1, max_size=6))
def test_round_trip(batch: list[Structure]) -> None:
    """Bit for bit, NaN and empty structures too."""
    tensors = pack(batch)
    longest = max(len(structure) for structure in batch)
    for spec in contract.INPUTS:
        assert tensors[spec.name].shape == spec.shape(len(batch), max(longest, 1)), "Triton refuses an axis of length 0"
        assert tensors[spec.name].dtype == spec.dtype
    for found, structure in zip(unpack(tensors), batch, strict=True):
        for name in ("numbers", "positions", "cell", "pbc"):
            np.testing.assert_array_equal(getattr(found, name), getattr(structure, name))
        np.testing.assert_array_equal(found.charge, structure.charge)
        assert found.spin == structure.spin


def test_padding_is_zero() -> None:
    batch = [
        Structure(np.array([1], dtype=np.int32), np.ones((1, 3))),
        Structure(np.array([2, 3], dtype=np.int32), np.ones((2, 3))),
    ]
    tensors = pack(batch)
    assert tensors["numbers"].tolist() == [[1, 0], [2, 3]]
    assert tensors["positions"][0, 1].tolist() == [0, 0, 0]


def test_optional_tensors_may_be_missing() -> None:
    tensors = pack([Structure(np.array([1], dtype=np.int32), np.ones((1, 3)), charge=2.0, spin=3)])
    del tensors["charge"], tensors["spin"]
    (found,) = unpack(tensors)
    assert (found.charge, found.spin) == (0.0, 0)


def test_a_zero_between_atoms_is_not_padding() -> None:
    """It stays, and the model refuses it as an element that it does not know."""
    tensors = pack([Structure(np.array([1, 1, 1], dtype=np.int32), np.ones((3, 3)))])
    tensors["numbers"][0, 1] = 0
    assert unpack(tensors)[0].numbers.tolist() == [1, 0, 1]


@pytest.mark.parametrize("atoms", [2, 4])
def test_tensors_that_do_not_fit_together(atoms: int) -> None:
    """Triton lets them pass, since both axes may have any length; three atoms with five positions had an energy once."""
    tensors = pack([Structure(np.array([1, 1, 1], dtype=np.int32), np.ones((3, 3)))])
    tensors["positions"] = np.ones((1, atoms, 3))
    with pytest.raises(ValueError, match="numbers has shape"):
        unpack(tensors)
