"""CHGNet's graphs are built here and not by the package; they have to be the package's."""

from __future__ import annotations

import json

import pytest

from tests.conformance.environments import run_in

CASES = {
    "Cu": 312,
    "Cu primitive": 78,
    "SrTiO3": 354,
    "water": 6,
    "slab TTF": 524,
    "one atom in a box": 0,
    "two isolated atoms": 0,
    "near fragments": 12,
    "left-handed cell": 354,
    "triclinic": 706,
    "108 atoms": 7792,
}
"""Directed bonds within 6 A, counted by the package."""


@pytest.mark.parametrize("cutoff", [5.0, 6.0], ids=["chgnet-0.2.0", "chgnet-0.3.0"])
def test_graphs_are_the_package_s(cutoff: float) -> None:
    found = json.loads(run_in("chgnet", "chgnet_graphs", cutoff, *CASES).splitlines()[-1])
    for name, bonds in CASES.items():
        assert found[name]["differ"] == [], name
        assert found[name]["positions"] <= 1e-6, name
        if cutoff == 6.0:
            assert found[name]["bonds"] == bonds, name
    assert found["SrTiO3"]["angles"] > 0, "angles are compared too"
