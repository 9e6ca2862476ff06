"""MACE: equal to its package in all its architectures, heads that share a batch, charge and spin that count, both precisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporters import family_python
from forcefields.verification import sha256
from tests.conformance import cases, tiny_family
from tests.conformance.comparison import Tolerance, beyond, deviations
from tests.conformance.environments import run_in
from tests.conformance.packages.mace import CASES
from tests.conformance.tiny_family import Tiny
from tests.service import ROOT

TOLERANCES = {
    "tiny-mace-omol": Tolerance(energy=1e-10, forces=1e-10, stress=1e-10),
    "tiny-mace-polar": Tolerance(energy=1e-8, forces=1e-8, charges=1e-8),
    # float32 against the package's float64: positions alone are rounded by 5e-7 A, at a stiffness of some 100 eV/A^2.
    "tiny-mace-omat": Tolerance(forces=2e-4),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mace")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> dict[str, Tiny]:
    return tiny_family.run("mace", folder)


@pytest.fixture(scope="module")
def traps(folder: Path, tiny: dict[str, Tiny]) -> dict[str, float]:
    assert tiny, "the checkpoints are made first"
    # The package prints on import; what a model process prints to standard output would be in its server's way.
    (line,) = run_in("mace", "mace_traps", folder).splitlines()
    found: dict[str, float] = json.loads(line)
    return found


@pytest.mark.parametrize("variant", CASES)
def test_gate(variant: str, tiny: dict[str, Tiny]) -> None:
    checks = tiny[variant].checks
    assert [check for check in checks.values() if not check["passed"]] == []
    declared = {name for name, check in checks.items() if check["note"].startswith("declared")}
    assert declared == ({"stress"} if variant == "tiny-mace-polar" else set())


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("mace"))
def test_equal_to_the_package(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.equal_to_the_package(tiny[variant], case, TOLERANCES.get(variant))


@pytest.mark.parametrize(("variant", "case"), tiny_family.chosen("mace"))
def test_batched_equals_alone(variant: str, case: str, tiny: dict[str, Tiny]) -> None:
    tiny_family.batched_equals_alone(tiny[variant], case)


def test_heads_share_a_batch(traps: dict[str, float]) -> None:
    """Two heads and the default in one pass, each what the package says with that head; eV/atom and eV/A."""
    assert traps["mixed heads"] < 1e-4
    assert traps["difference of the heads"] > 1.0
    assert traps["an unknown head"] == 1


def test_precision(traps: dict[str, float]) -> None:
    """float64 where the variant asks for it, and the repulsion, whose digits cancel in float32, in float64 always; eV/A."""
    assert traps["float64"] < 1e-10
    assert traps["repulsion of the package in float32"] > 5e-4, "the package is as precise now: the adapter need not be any more"
    assert traps["repulsion served"] < 5e-5
    assert traps["energies of the atoms"] < 1e-5


def test_charge_and_spin(traps: dict[str, float]) -> None:
    assert traps["charge"] > 0.1
    assert traps["spin"] > 0.1
    assert traps["default is a neutral singlet"] < 1e-10
    # A singlet with nine electrons does not exist: without a spin OH is a doublet, and so is the cation of water. eV, in float64.
    assert traps["radical without a spin"] < 1e-10
    assert traps["cation without a spin"] < 1e-10
    assert traps["radical taken for a singlet"] > 0.1, "the model would not notice"
    assert traps["refused"] == 1, "a charge or spin without a row in the embedding: on a GPU it would end the process"
    assert traps["refused where it would be dropped"] == 1


def test_polar(traps: dict[str, float]) -> None:
    """Charges hear each other at any distance, so a molecule must not be evaluated in a periodic box; eV."""
    assert traps["what a box does to an ion"] > 0.1
    assert traps["an ion elsewhere"] < 1e-8
    assert traps["a slab is refused"] == 1
    assert traps["no stress"] == 1


@pytest.mark.parametrize(
    "trap",
    [
        "heads that the catalogue does not know",
        "heads that the checkpoint does not have",
        "charge that the catalogue does not know",
        "charge that the checkpoint does not know",
    ],
)
def test_a_checkpoint_that_is_not_what_the_catalogue_says_is_refused(trap: str, traps: dict[str, float]) -> None:
    assert traps[trap] == 1


def test_archives_in_a_checkpoint_go_to_the_device(traps: dict[str, float]) -> None:
    """e3nn would leave those of MACE-ANI-CC on the GPU that they were saved from."""
    assert traps["archives"] == 1


@pytest.mark.parametrize(
    ("quantity", "factor"), [("energy", 1.001), ("forces", -1.0), ("forces", 1.01), ("stress", -1.0), ("stress", 160.21766)]
)
def test_negative_control(quantity: str, factor: float, tiny: dict[str, Tiny]) -> None:
    """The comparison that passes above fails on an answer that is wrong in one of the ways that happen."""
    served = tiny["tiny-mace"].answers["SrTiO3/served"]
    known = {name: value for name, value in tiny["tiny-mace"].expected("SrTiO3").items() if name in served}
    spoilt = deviations(served | {quantity: served[quantity] * factor}, known)
    assert quantity in beyond({name: spoilt[name] for name in (quantity,)}, Tolerance())


def test_cases_are_not_trivial(tiny: dict[str, Tiny]) -> None:
    """A tiny model whose forces are nearly zero would pass every comparison."""
    for variant, case in (("tiny-mace", "SrTiO3"), ("tiny-mace-omat", "SrTiO3"), ("tiny-mace-omol", "water")):
        assert abs(tiny[variant].answers[f"{case}/served"]["forces"]).max() > 0.1


def test_the_package_is_wrong_where_the_table_says_so(tiny: dict[str, Tiny]) -> None:
    """Otherwise the row, and perhaps the care that the runtime takes, is no longer needed."""
    assert set(cases.REFERENCES["mace"]) == {"far fragments", "left-handed cell"}
    answers = tiny["tiny-mace-polar"].answers
    left, right = answers["left-handed cell/package"], answers["left-handed cell/right-handed"]
    assert abs(left["energy"] - right["energy"]) > 1e-3


def test_what_is_made_before_a_tiny_checkpoint_is_not_in_its_bytes(tmp_path: Path) -> None:
    """One process makes all of a family; the code that e3nn compiles is numbered, and saved with the model."""
    paths = [tmp_path / name / "tiny.model" for name in ("first", "other", "last")]
    for path in paths:
        path.parent.mkdir()
    pairs = zip(("tiny-mace", "tiny-mace-omat", "tiny-mace"), map(str, paths), strict=True)
    python = ROOT / "environments" / "mace" / "bin" / "python"
    done = family_python.run(python, "forcefields.make_tiny", *(argument for pair in pairs for argument in pair))
    assert done.returncode == 0, done.stderr[-3000:]
    first, other, last = (sha256(path) for path in paths)
    assert first == last != other
