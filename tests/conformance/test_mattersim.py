"""MatterSim: equal to its package where that is right, without a home, without prints, never with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conformance import cases, tiny_family
from tests.conformance.comparison import Tolerance, beyond, deviations
from tests.conformance.environments import run_in
from tests.conformance.tiny_family import Tiny

NAME = "tiny-mattersim"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mattersim")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Tiny:
    return tiny_family.run("mattersim", folder)[NAME]


@pytest.fixture(scope="module")
def traps(folder: Path, tiny: Tiny) -> dict[str, float]:
    assert tiny, "the checkpoint is made first"
    (line,) = run_in("mattersim", "mattersim_traps", folder).splitlines()
    found: dict[str, float] = json.loads(line)
    return found


def test_gate(tiny: Tiny) -> None:
    assert [check for check in tiny.checks.values() if not check["passed"] or check["note"].startswith("declared")] == []


@pytest.mark.parametrize("case", cases.STRUCTURES)
def test_equal_to_the_package(case: str, tiny: Tiny) -> None:
    tiny_family.equal_to_the_package(tiny, case)


@pytest.mark.parametrize("case", cases.STRUCTURES)
def test_batched_equals_alone(case: str, tiny: Tiny) -> None:
    tiny_family.batched_equals_alone(tiny, case)


@pytest.mark.parametrize("case", cases.REFERENCES["mattersim"])
def test_the_package_is_wrong_where_the_table_says_so(case: str, tiny: Tiny) -> None:
    """Otherwise the row, and perhaps the care that the runtime takes, is no longer needed."""
    as_it_is = tiny.answers[f"{case}/package"]
    if "error" not in as_it_is:
        assert beyond(deviations(as_it_is, tiny.answers[f"{case}/{cases.reference('mattersim', case).kind}"]), Tolerance())


def test_without_a_home_and_in_silence(traps: dict[str, float]) -> None:
    """The package would make folders in it, and print where the checkpoint is: the fixture has found one line alone."""
    assert traps["without a home"] == 1


def test_neighbours_at_exactly_the_cutoff(traps: dict[str, float]) -> None:
    """Whether they are counted must not matter, which two searches decide in two ways; eV/atom and eV/A."""
    assert traps["neighbours at the cutoff"] < 1e-5


def test_an_incomplete_checkpoint_is_refused(traps: dict[str, float]) -> None:
    """The package would leave the missing weights as random as they are."""
    assert traps["an incomplete checkpoint is refused"] == 1


@pytest.mark.parametrize(
    ("quantity", "factor"), [("energy", 1.001), ("forces", -1.0), ("forces", 1.01), ("stress", -1.0), ("stress", 160.21766)]
)
def test_negative_control(quantity: str, factor: float, tiny: Tiny) -> None:
    """The comparison that passes above fails on an answer that is wrong in one of the ways that happen."""
    served = tiny.answers["SrTiO3/served"]
    found = deviations(served | {quantity: served[quantity] * factor}, tiny.expected("SrTiO3"))
    assert quantity in beyond(found, Tolerance())
    assert np.abs(served["forces"]).max() > 0.1, "forces too small to be told apart"
