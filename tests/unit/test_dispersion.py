"""Which correction belongs to which model."""

from __future__ import annotations

import pytest

from forcefields.catalogue import load
from forcegate.dispersion import DAMPINGS, correction, damping_of
from forcegate.errors import DispersionNotSupported


@pytest.mark.parametrize(
    ("functional", "damping"),
    [
        ("PBE(+U)", "pbe"),
        ("PBE(+U), VASP 54 potentials", "pbe"),
        ("r2SCAN", "r2scan"),
        ("RPBE", "rpbe"),
        ("wB97M-V/def2-TZVPD", None),
        ("CCSD(T)*/CBS", None),
        ("", None),
    ],
)
def test_the_damping_is_that_of_the_functional(functional: str, damping: str | None) -> None:
    assert damping_of(functional) == damping


@pytest.mark.parametrize(
    ("policy", "asked", "expected"),
    [
        ("allowed", "auto", None),
        ("allowed", "none", None),
        ("allowed", "d3bj", "d3bj-pbe"),
        ("recommended", "auto", "d3bj-pbe"),
        ("recommended", "none", None),
        ("included", "auto", None),
        ("forbidden", "auto", None),
    ],
)
def test_the_policy_decides(policy: str, asked: str, expected: str | None) -> None:
    assert correction("m", policy, "PBE", asked) == expected


@pytest.mark.parametrize("policy", ["included", "forbidden", "none"])
def test_what_would_be_wrong_is_refused_and_not_left_out(policy: str) -> None:
    with pytest.raises(DispersionNotSupported):
        correction("m", policy, "PBE", "d3bj")


def test_a_functional_without_damping_is_refused() -> None:
    with pytest.raises(DispersionNotSupported, match="wB97X"):
        correction("m", "allowed", "wB97X/6-31G*", "d3bj")


def test_every_damping_is_served_and_every_allowed_model_has_one() -> None:
    catalogue = load()
    assert {f"d3bj-{name}" for name in DAMPINGS} == {v.name for v in catalogue.families["dftd3"].variants}
    for variant in catalogue.variants.values():
        for head in variant.heads or ("",):
            if variant.dispersion_of(head) in ("allowed", "recommended"):
                functional = variant.functional_of(head)
                assert damping_of(functional) is not None, f"{variant.name} {head}: {functional}"
