"""What a GPU computes with: full float32 unless the operator says otherwise, and nothing that is missing in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from forcefields import catalogue
from forcefields.base import ForceField
from forcefields.lennard_jones.adapter import LennardJones
from forcefields.runtime import arithmetic, gate
from forcefields.runtime.arithmetic import Arithmetic
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import EnvironmentBroken
from frontend.settings import load
from frontend.supervisor import triton

KNOWN = catalogue.load()
ARGON = KNOWN.resolve("lj-argon")
FAMILY = KNOWN.families["mace"]
GPU = "cuda:0"
ROOT = Path(__file__).parents[2]


class Takes(LennardJones):
    takes_cuequivariance = takes_compile = True


def test_full_float32_and_the_packages_own_layers_by_default() -> None:
    assert arithmetic.chosen(ModelSettings(), FAMILY, Takes, GPU) == Arithmetic("highest", cuequivariance=False)


def test_a_cpu_always_computes_in_full_float32() -> None:
    settings = ModelSettings(matmul_precision="medium", cuequivariance="on")
    found = arithmetic.chosen(settings, FAMILY, Takes, "cpu")
    assert found == Arithmetic()
    assert found.as_dict("float32") == {
        "summary": "full float32",
        "matmul_precision": "highest",
        "cuequivariance": False,
        "compile": False,
    }


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_families_that_take_it_are_compiled_on_every_device(device: str) -> None:
    settings = ModelSettings(compile="on")
    assert arithmetic.chosen(settings, FAMILY, Takes, device) == Arithmetic(compile=True)
    assert arithmetic.chosen(settings, FAMILY, LennardJones, device) == Arithmetic()


def test_what_cuequivariance_has_replaced_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(compile="on", cuequivariance="auto")
    assert arithmetic.chosen(settings, FAMILY, Takes, GPU) == Arithmetic(compile=True), "there is none here"
    monkeypatch.setattr(arithmetic, "PACKAGES", ("json",))
    assert arithmetic.chosen(settings, FAMILY, Takes, GPU) == Arithmetic(cuequivariance=True)


def test_what_was_computed_with_is_told_in_words() -> None:
    rounded = Arithmetic("high", cuequivariance=True, compile=True)
    assert rounded.summary("float32") == (
        "float32, matrix products in TensorFloat-32 where the device has it, cuEquivariance, compiled"
    )
    assert rounded.summary("float64") == "full float64, cuEquivariance, compiled"


@pytest.mark.parametrize(("adapter", "expected"), [(Takes, True), (LennardJones, False)])
def test_cuequivariance_is_for_families_that_take_it(
    adapter: type[ForceField], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "PACKAGES", ("json",))
    for setting in ("auto", "on"):
        found = arithmetic.chosen(ModelSettings(matmul_precision="high", cuequivariance=setting), FAMILY, adapter, GPU)
        assert found == Arithmetic("high", cuequivariance=expected)


def test_what_is_asked_for_and_missing_is_an_error_that_says_what_to_install() -> None:
    """This environment has no cuEquivariance."""
    assert not arithmetic.chosen(ModelSettings(cuequivariance="auto"), FAMILY, Takes, GPU).cuequivariance
    with pytest.raises(EnvironmentBroken, match="has no cuequivariance_torch") as refused:
        arithmetic.chosen(ModelSettings(cuequivariance="on"), FAMILY, Takes, GPU)
    named = next(word for word in refused.value.hint.replace("`", "").replace(",", "").split() if word.endswith(".txt"))
    assert "cuequivariance-torch==" in (ROOT / named).read_text()


def test_a_changed_policy_runs_the_gate_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_device_name", lambda _device: "the same card")

    def key(device: str, settings: ModelSettings) -> str:
        return gate.combination(ARGON, KNOWN.family_of(ARGON), device, "1", settings)

    usual = ModelSettings()
    changed = [replace(usual, matmul_precision="high"), replace(usual, cuequivariance="auto"), replace(usual, neighbours="device")]
    compiled = replace(usual, compile="on")
    assert len({key(GPU, settings) for settings in [usual, *changed, compiled]}) == 5
    assert {key("cpu", settings) for settings in [usual, *changed]} == {key("cpu", usual)}, "on a CPU nothing changes"
    assert key("cpu", compiled) != key("cpu", usual), "but for torch.compile"


def test_the_settings_reach_the_model_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "environments/triton/lib/python3.11/site-packages/nvidia_pytriton.libs").mkdir(parents=True)
    settings = load(matmul_precision="high", cuequivariance="auto", compile="on", neighbours="device", root=tmp_path)
    for name, value in triton.environment(settings).items():
        monkeypatch.setenv(name, value)
    found = ModelSettings.from_environment()
    assert (found.matmul_precision, found.cuequivariance, found.compile, found.neighbours) == ("high", "auto", "on", "device")


def test_threads_of_a_model_wait_asleep_unless_somebody_says_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "environments/triton/lib/python3.11/site-packages/nvidia_pytriton.libs").mkdir(parents=True)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert triton.environment(load(root=tmp_path))["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert triton.environment(load(root=tmp_path))["OMP_WAIT_POLICY"] == "ACTIVE"


SCRIPT = """
import torch
from forcefields.runtime.arithmetic import Arithmetic
assert torch.backends.cudnn.allow_tf32, "what torch begins with"
torch.set_float32_matmul_precision("high")  # as packages do
Arithmetic().apply()
assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
assert torch.get_float32_matmul_precision() == "highest"
Arithmetic("high").apply()
assert torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32
"""


def test_torch_is_told() -> None:
    python = ROOT / "environments" / "sevennet" / "bin" / "python"
    if not python.exists():
        pytest.skip("no environment with torch is built")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(python), "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sys.modules.get("torch") is None, "the gateway's own environment stays without torch"
