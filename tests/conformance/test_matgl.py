"""MatGL: equal to its package, a line graph that is linear in the batch, totals that keep their digits, nothing at home."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.conformance import cases, tiny_family
from tests.conformance.comparison import beyond, deviations
from tests.conformance.environments import run_in
from tests.conformance.tiny_family import Tiny

VARIANTS = ("tiny-matgl-m3gnet", "tiny-matgl-tensornet", "tiny-matgl-chgnet")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    return tiny_family.run("matgl", tmp_path_factory.mktemp("matgl"))


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    found: dict[str, float] = json.loads(run_in("matgl", "matgl_traps", tmp_path_factory.mktemp("traps")).splitlines()[-1])
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_gate(variant: str, tiny: dict[str, Tiny]) -> None:
    checks = tiny[variant].checks
    assert [check for check in checks.values() if not check["passed"] or check["note"].startswith("declared")] == []


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("matgl"))
def test_equal_to_the_package(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.equal_to_the_package(tiny[variant], case)


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("matgl"))
def test_batched_equals_alone(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.batched_equals_alone(tiny[variant], case)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_package_is_wrong_where_the_table_says_so(variant: str, tiny: dict[str, Tiny]) -> None:
    """Otherwise the rows are no longer needed."""
    answers = tiny[variant].answers
    for case, row in cases.REFERENCES["matgl"].items():
        as_it_is = answers[f"{case}/package"]
        assert beyond(deviations(as_it_is, answers[f"{case}/{row.kind}"]), tiny_family.Tolerance()), case


def test_line_graphs(traps: dict[str, float]) -> None:
    """The same as the package's, whose comparison of 40 000 bonds with each other would take 8 GB."""
    assert traps["different line graphs"] == 0
    assert traps["megabytes for 40 000 bonds"] < 300


def test_energies_of_all_electrons(traps: dict[str, float]) -> None:
    """Totals of 70 000 eV, in which float32 has steps of 0.008 eV: forces are still the differences of energies."""
    assert traps["forces with all electrons"] < 5e-3


def test_a_potential_that_was_saved_without_stress_has_one(traps: dict[str, float]) -> None:
    assert traps["stress that was not asked for"] < 5e-4


def test_nothing_stays_behind(traps: dict[str, float]) -> None:
    """Neither the tensors of the last batch in the model, nor files in the home directory; energies alone are the same."""
    assert traps["features left"] == 0
    assert traps["files at home"] == 0
    assert traps["energy alone"] < 1e-4


def test_graphs_have_the_types_of_the_package(traps: dict[str, float]) -> None:
    """With indices of 64 bits TensorNet was right, and slower by a quarter."""
    assert traps["other types"] == 0


def test_magnetic_moments(tiny: dict[str, Tiny]) -> None:
    magmoms = tiny["tiny-matgl-chgnet"].answers["SrTiO3/served"]["magmoms"]
    assert magmoms.shape == (5,)
    assert np.ptp(magmoms) > 1e-3
