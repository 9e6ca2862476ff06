"""The readiness gate passes what is right, and names what is wrong with what is not."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from forcefields import catalogue
from forcefields.runtime import gate
from forcefields.runtime.engine import Engine
from forcefields.runtime.loading import adapter
from forcefields.runtime.physics import Limits
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import GateFailed
from tests.conformance.environments import checkpoint_of, run_in
from tests.conformance.reference import family_of

NAMED: dict[str, set[str]] = {
    "right": set(),
    "forces 1 % too large": {"forces"},
    "forces of opposite sign": {"forces"},
    "forces in another order": {"forces"},
    "first atom pushed": {"forces", "permutation"},
    "stress of opposite sign": {"stress"},
    "stress in another order": {"stress"},
    "stress in GPa": {"stress"},
    "fixed in space": {"translation"},
    "batch matters": {"batch"},
    "energy 1e-4 eV/atom higher": {"golden"},
}
"""The checks that have to fail for each way of being wrong."""

EXACTLY = ("right", "stress of opposite sign", "stress in another order", "energy 1e-4 eV/atom higher")
"""Where nothing else may fail. (In GPa the rounding of the stress is 160 times larger too, and fails the invariances or not.)"""

WAYS = {
    "lj-argon": tuple(NAMED),
    "chgnet-0.3.0": tuple(NAMED),
    "sevennet-0": ("right", "forces 1 % too large", "stress of opposite sign", "fixed in space"),
}


@lru_cache
def failures(variant: str) -> dict[str, list[str]]:
    """The failed checks of one variant by what is wrong, found in its family's environment."""
    printed = run_in(family_of(variant), "corrupted", variant, checkpoint_of(variant), *WAYS[variant])
    return dict(json.loads(printed.splitlines()[-1]))


@pytest.mark.parametrize(("variant", "wrong"), [(variant, wrong) for variant, ways in WAYS.items() for wrong in ways])
def test_the_gate_names_what_is_wrong(variant: str, wrong: str) -> None:
    failed = set(failures(variant)[wrong])
    assert failed >= NAMED[wrong]
    if wrong in EXACTLY:
        assert failed == NAMED[wrong]


class Argon:
    """The readiness gate of the analytic model, in this process."""

    def __init__(self) -> None:
        families = catalogue.load()
        self.variant = families.resolve("lj-argon")
        self.family = families.family_of(self.variant)
        force_field = adapter(self.family).load(checkpoint_of("lj-argon"), self.variant, "cpu")
        self.engine = Engine(force_field, self.variant, Limits(1000, 10**6))

    def run(self, settings: ModelSettings) -> gate.GateReport:
        """As a model does on load."""
        return gate.pass_or_raise(self.engine, self.family, "cpu", settings)


@pytest.fixture
def argon() -> Argon:
    return Argon()


def test_a_model_that_fails_is_refused_with_the_check_and_the_deviation(
    argon: Argon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = gate.golden.recorded(argon.family.golden, argon.variant, tmp_path)
    assert recorded is not None
    shifted = {name: energy + (1e-4 if name == "Ar fcc" else 0) for name, energy in recorded.items()}
    monkeypatch.setattr(gate.golden, "recorded", lambda *_: shifted)
    with pytest.raises(GateFailed, match=r"golden deviates by 2\.5e-05 eV/atom"):
        argon.run(ModelSettings(state=tmp_path))
    assert not (tmp_path / "gates" / "float64" / "lj-argon.json").exists()


def test_the_full_gate_runs_once_for_one_combination(argon: Argon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(state=tmp_path)
    first, second = argon.run(settings), argon.run(settings)
    assert (first.mode, second.mode) == ("full", "golden")
    assert [check.name for check in second.checks] == [check.name for check in first.checks], "what passed before is still shown"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert argon.run(settings).mode == "full", "another number of threads is another combination"
    assert argon.run(ModelSettings(state=tmp_path, gate="full")).mode == "full"


def test_golden_energies_are_of_one_dtype(argon: Argon, tmp_path: Path) -> None:
    """Those in float32 and in float64 differ by more than the gate allows, so that neither is held against the other."""
    single = replace(argon.variant, dtype="float32", dtypes=("float64", "float32"))
    assert gate.golden.recorded(argon.family.golden, single, tmp_path) is None
    gate.golden.record(gate.golden.of_state(tmp_path, single), single, {"Ar fcc": 1.0})
    assert gate.golden.recorded(argon.family.golden, single, tmp_path) == {"Ar fcc": 1.0}
    assert gate.golden.recorded(argon.family.golden, argon.variant, tmp_path) != {"Ar fcc": 1.0}
    (check,) = gate.Gate(Engine(argon.engine.force_field, single, argon.engine.limits), None).run(full=False).checks
    assert check.note == "no recorded values for this checkpoint in float32"


def test_a_state_folder_that_cannot_be_written_costs_only_the_memory(argon: Argon, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert argon.run(ModelSettings(state=tmp_path / "file")).passed


def test_a_declared_exception_is_shown_with_its_reason(argon: Argon) -> None:
    variant = replace(argon.variant, gate=replace(argon.variant.gate, skip={"stress": "this model has none"}))
    report = gate.Gate(Engine(argon.engine.force_field, variant, argon.engine.limits), None).run(full=True)
    (check,) = [check for check in report.checks if check.name == "stress"]
    assert (check.passed, check.note) == (True, "declared: this model has none")
