"""The tensor contract agrees with itself, with ASE and with Triton."""

from __future__ import annotations

import numpy as np
import pytest
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from forcegate import contract

SPECS = (*contract.INPUTS, *contract.OUTPUTS, *contract.EXTRA_OUTPUTS.values())


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_types_are_tritons(spec: contract.TensorSpec) -> None:
    assert f"TYPE_{spec.triton_type}" in model_config_pb2.DataType.keys()  # noqa: SIM118 - an enum of protobuf, not a mapping
    assert spec.dtype == triton_to_np_dtype(spec.triton_type)


def test_names_are_unique() -> None:
    names = [spec.name for spec in SPECS]
    assert len(set(names)) == len(names)


def test_shapes() -> None:
    shapes = {spec.name: spec.shape(3, 7) for spec in SPECS}
    assert shapes["numbers"] == (3, 7)
    assert shapes["positions"] == shapes["forces"] == (3, 7, 3)
    assert shapes["cell"] == (3, 3, 3)
    assert shapes["pbc"] == (3, 3)
    assert shapes["energy"] == shapes["charge"] == shapes["spin"] == (3, 1)
    assert shapes["stress"] == (3, 6)
    assert shapes["magmoms"] == (3, 7)


def test_only_charge_and_spin_are_optional() -> None:
    assert [spec.name for spec in SPECS if spec.optional] == ["charge", "spin"]


def test_voigt_order_is_ases() -> None:
    stress = np.random.default_rng(0).normal(size=(3, 3))
    stress += stress.T
    np.testing.assert_allclose(contract.voigt_from_matrix(stress), full_3x3_to_voigt_6_stress(stress))
    np.testing.assert_allclose(voigt_6_to_full_3x3_stress(contract.voigt_from_matrix(stress)), stress)


def test_voigt_averages_what_rounding_made_unequal() -> None:
    stress = np.array([[1.0, 2.0, 3.0], [2.2, 4.0, 5.0], [3.4, 5.6, 6.0]])
    np.testing.assert_allclose(contract.voigt_from_matrix(stress), [1.0, 4.0, 6.0, 5.3, 3.2, 2.1])
    assert contract.voigt_from_matrix(np.stack([stress, stress])).shape == (2, 6)


def test_extra_outputs_come_after_the_others() -> None:
    assert [spec.name for spec in contract.output_specs(("magmoms",))] == ["energy", "forces", "stress", "magmoms"]
    with pytest.raises(KeyError):
        contract.output_specs(("dipole",))
