"""Charge and spin reach the heads that use them, and are refused, never ignored, everywhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ase.build import molecule

from exporters import repository
from forcefields import catalogue
from forcefields.catalogue import Variant
from forcefields.multiplicity import multiplicity
from forcefields.runtime.physics import Limits, validate
from forcegate.errors import ChargeNotSupported, ForcegateError, InvalidStructure, SpinNotSupported
from forcegate.structure import from_atoms

LIMITS = Limits(atoms=100, edges=10_000)


def variant(**fields: Any) -> Variant:
    """SevenNet's two-headed model, with other fields."""
    return replace(catalogue.load().resolve("sevennet-mf-0"), heads=("omat", "omol"), default_head="omat", **fields)


SOME_HEADS = variant(uses_charge=True, uses_spin=True, charge_heads=("omol",))
ALL_HEADS = variant(uses_charge=True, uses_spin=True)
NO_HEADS = variant()


def checked(model: Variant, head: str, charge: float = 0.0, spin: int = 0) -> str:
    return validate(replace(from_atoms(molecule("H2O")), charge=charge, spin=spin), head, model, LIMITS)


@pytest.mark.parametrize(
    ("model", "head", "charge", "spin"),
    [
        (SOME_HEADS, "omol", 1.0, 2),
        (SOME_HEADS, "omol", -100.0, 100),
        (SOME_HEADS, "omat", 0.0, 0),
        # A singlet is what a model that knows no spin computes.
        (SOME_HEADS, "omat", 0.0, 1),
        (ALL_HEADS, "omat", 1.0, 2),
        (NO_HEADS, "omat", 0.0, 1),
    ],
)
def test_taken(model: Variant, head: str, charge: float, spin: int) -> None:
    assert checked(model, head, charge, spin) == head


@pytest.mark.parametrize(
    ("model", "head", "charge", "spin", "error"),
    [
        (SOME_HEADS, "omat", 1.0, 0, ChargeNotSupported),
        (SOME_HEADS, "omat", 0.0, 3, SpinNotSupported),
        # The default head is another one than the one that knows charges.
        (SOME_HEADS, "", 1.0, 0, ChargeNotSupported),
        (NO_HEADS, "omol", 1.0, 0, ChargeNotSupported),
        (NO_HEADS, "omol", 0.0, 2, SpinNotSupported),
        (SOME_HEADS, "omol", 0.5, 0, InvalidStructure),
        (SOME_HEADS, "omol", 101.0, 0, InvalidStructure),
        (SOME_HEADS, "omol", 0.0, 101, InvalidStructure),
        (SOME_HEADS, "omol", 0.0, -1, InvalidStructure),
        (NO_HEADS, "omat", 0.0, -1, InvalidStructure),
    ],
)
def test_refused(model: Variant, head: str, charge: float, spin: int, error: type[ForcegateError]) -> None:
    with pytest.raises(error) as refused:
        checked(model, head, charge, spin)
    assert type(refused.value) is error
    if model.charge_heads and error in (ChargeNotSupported, SpinNotSupported):
        assert "omol" in refused.value.hint, "the hint names the head that would take it"


@pytest.mark.parametrize(
    ("formula", "charge", "given", "expected"),
    [
        ("H2O", 0.0, 0, 1),
        ("OH", 0.0, 0, 2),
        ("OH", -1.0, 0, 1),
        ("OH", 1.0, 0, 1),
        ("H2O", 1.0, 0, 2),
        ("H2O", -1.0, 0, 2),
        # Hund's rule is not applied: the lowest, and what is given otherwise.
        ("O2", 0.0, 0, 1),
        ("O2", 0.0, 3, 3),
        ("OH", 0.0, 4, 4),
        ("H", 1.0, 0, 1),
    ],
)
def test_multiplicity(formula: str, charge: float, given: int, expected: int) -> None:
    assert multiplicity(replace(from_atoms(molecule(formula)), charge=charge, spin=given)) == expected


def test_policies_of_heads() -> None:
    """A head's own dispersion policy goes before the variant's, and both reach the clients."""
    model = replace(SOME_HEADS, dispersion="allowed", head_dispersion={"omol": "included"})
    assert [model.dispersion_of(head) for head in ("omat", "omol", "")] == ["allowed", "included", "allowed"]
    parameters = repository.parameters(model, catalogue.load().family_of(model))
    assert parameters["charge_heads"] == "omol"
    assert parameters["head_dispersion"] == '{"omol": "included"}'
