"""GRACE: equal to its package, few shapes that are compiled, the caller's atoms left alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import cases, tiny_family
from tests.conformance.comparison import Tolerance, deviations
from tests.conformance.tiny_family import Tiny
from tests.service import ROOT

FLOAT64 = Tolerance(energy=1e-11, forces=1e-10, stress=1e-11, energies=1e-11)
"""Both sides compute in float64: what differs is the order of sums, and positions of 1e4 A for the fragments that are far apart."""
COUNT = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grace")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> dict[str, Tiny]:
    return tiny_family.run("grace", folder)


@pytest.mark.parametrize("variant", ["tiny-grace-1l", "tiny-grace-2l"])
def test_gate(variant: str, tiny: dict[str, Tiny]) -> None:
    checks = tiny[variant].checks
    assert [check for check in checks.values() if not check["passed"]] == []
    assert [check for check in checks.values() if check["note"].startswith("declared")] == []


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("grace"))
def test_equal_to_the_package(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.equal_to_the_package(tiny[variant], case, FLOAT64)


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("grace"))
def test_batched_equals_alone(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.batched_equals_alone(tiny[variant], case, FLOAT64)


def test_energies_of_atoms_add_up(tiny: dict[str, Tiny]) -> None:
    for case in cases.STRUCTURES:
        served = tiny["tiny-grace-2l"].answers[f"{case}/served"]
        assert abs(served["energies"].sum() - served["energy"]) < 1e-9 * len(served["energies"])


def traps(state: Path, checkpoint: Path, work: Path) -> dict[str, Any]:
    """The figures of ``grace_traps``, with XLA's cache in ``state``; all of them when the folder ``work`` exists."""
    command = [str(ROOT / "environments" / "grace" / "bin" / "python"), "-W", "ignore", "-m", "tests.conformance.grace_traps"]
    environment = os.environ | {"FORCEGATE_STATE": str(state), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(work), str(checkpoint), str(COUNT)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def checkpoint(tiny: dict[str, Tiny], folder: Path) -> Path:
    return folder / tiny["tiny-grace-1l"].variant / "1l"


@pytest.fixture(scope="module")
def cold(checkpoint: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return traps(folder / "state", checkpoint, tmp_path_factory.mktemp("exports"))


def test_few_shapes_are_compiled(cold: dict[str, Any]) -> None:
    """XLA's own cache tells how often it compiled: once for every shape that was used, and for nothing else."""
    assert cold["of different lengths"] > 0.8 * COUNT
    assert cold["shapes"] <= 12
    assert cold["files in the cache"] <= cold["shapes"]


def test_what_was_compiled_is_kept(cold: dict[str, Any], checkpoint: Path, folder: Path) -> None:
    warm = traps(folder / "state", checkpoint, folder / "none")
    assert warm["files in the cache"] >= cold["files in the cache"]
    assert warm["seconds of other shapes"] < 0.6 * cold["seconds of other shapes"]


def test_the_callers_atoms_are_left_alone(cold: dict[str, Any]) -> None:
    """The package makes a molecule periodic, in the caller's own object; the adapter never gets that object."""
    assert cold["periodicity that the package gives a molecule"] == [True, True, True]


def test_a_slab_under_little_vacuum(cold: dict[str, Any]) -> None:
    """The package makes it periodic as it is: the slab feels its own image."""
    assert abs(cold["slab as the package sees it"] - cold["slab in vacuum"]) > 1e-3
    assert abs(cold["slab as served"] - cold["slab in vacuum"]) < 1e-10


def test_weights_in_float32(cold: dict[str, Any]) -> None:
    """eV/atom and eV/A from the package's calculator: not equal to the last digit, as in float64, but within float32's."""
    assert cold["float32, energy"] < 1e-5
    assert cold["float32, forces"] < 1e-4
    assert cold["float32, largest force"] > 0.1


def test_other_exports(cold: dict[str, Any]) -> None:
    """Without a file of metadata, with cutoffs by pairs of elements, and what does not fit is refused."""
    assert cold["without metadata"]
    assert cold["longest bond Na-Cl"] < 3.0
    assert cold["longest bond Na-Na"] > 4.0
    assert cold["wrong dtype"] == "the weights are float64, the catalogue says float32"
    assert "built for the CPU" in cold["on a GPU"]


def test_the_package_is_wrong_where_the_table_says_so(tiny: dict[str, Tiny]) -> None:
    """Otherwise the row is no longer needed."""
    assert "LinAlgError" in str(tiny["tiny-grace-1l"].answers["slab TTF, c = 0/package"]["error"])


def test_negative_control(tiny: dict[str, Tiny]) -> None:
    """The comparison that passes above fails on an answer that is wrong in one of the ways that happen."""
    for variant in tiny:
        served, known = tiny[variant].answers["SrTiO3/served"], tiny[variant].expected("SrTiO3")
        assert np.abs(served["forces"]).max() > 0.1, "forces too small to be told apart"
        for quantity, spoilt in {
            "energy": served["energy"] + 1e-6,
            "forces": -served["forces"],
            "stress": served["stress"][[0, 1, 2, 5, 4, 3]],
            "energies": served["energies"][::-1],
        }.items():
            assert deviations(served | {quantity: spoilt}, known)[quantity] > 1e-8
