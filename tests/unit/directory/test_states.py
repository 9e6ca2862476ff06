"""The directory of models: what Triton, the catalogue and the models' reports say together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forcegate.errors import (
    CheckpointMismatch,
    CheckpointMissing,
    EnvironmentBroken,
    ForcegateError,
    GateFailed,
    ModelNotReady,
    UnknownModel,
)
from frontend.triton.directory import FAILED, LOADABLE, LOADING, MISSING, READY, Directory
from tests.unit.directory.control import CATALOGUE, NAME, VARIANT, Control, report, run


def test_before_anything_is_known_nothing_is_ready(directory: Directory) -> None:
    assert directory.entry(NAME).state == LOADABLE
    with pytest.raises(ModelNotReady, match="not loaded"):
        directory.facts(NAME)


def test_a_ready_model_vouches_for_itself(directory: Directory, control: Control, tmp_path: Path) -> None:
    control.say("READY")
    report(tmp_path, os.getpid(), gate={"mode": "full"})
    run(directory.poll)
    entry = directory.entry("lennard-jones")
    assert (entry.state, entry.report.device, entry.report.gate) == (READY, "cpu", {"mode": "full"})
    assert (entry.report.memory_mb or 0) > 0
    facts = directory.facts(NAME)
    assert facts.checkpoint_sha256 == VARIANT.checkpoint.sha256
    assert facts.package_version == CATALOGUE.family_of(VARIANT).version


def test_a_model_tells_what_it_computes_with(directory: Directory, control: Control, tmp_path: Path) -> None:
    """By its report; one of a load that failed says nothing of the copy that goes on answering."""
    arithmetic = {"summary": "full float64", "matmul_precision": "highest", "cuequivariance": False, "compile": False}

    async def steps() -> None:
        control.say("READY")
        await directory.poll()
        assert directory.facts(NAME).arithmetic == (), "no report yet"
        report(tmp_path, os.getpid(), arithmetic=arithmetic)
        await directory.poll()
        assert dict(directory.facts(NAME).arithmetic) == arithmetic
        assert hash(directory.facts(NAME)), "the part of answers that is made of it is kept"
        report(tmp_path, os.getppid(), ready=False)
        await directory.poll()
        assert dict(directory.facts(NAME).arithmetic) == arithmetic

    run(steps)


def test_a_model_with_another_checkpoint_is_not_asked(directory: Directory, control: Control) -> None:
    control.say("READY")
    control.parameters["checkpoint_sha256"] = "0" * 64
    run(directory.poll)
    assert directory.entry(NAME).state == FAILED
    with pytest.raises(CheckpointMismatch, match="0000"):
        directory.facts(NAME)


def test_a_model_of_somebody_else_is_not_asked(directory: Directory, control: Control) -> None:
    control.say("READY")
    del control.parameters["checkpoint_sha256"]
    run(directory.poll)
    with pytest.raises(ModelNotReady):
        directory.facts(NAME)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GateFailed("Forces differ from finite differences."), FAILED),
        (CheckpointMismatch("argon.json has sha256 1, expected 2."), FAILED),
        (CheckpointMissing("argon.json is not there."), MISSING),
        (EnvironmentBroken("vesin is missing."), FAILED),
    ],
)
def test_a_failed_load_says_why_and_is_not_worth_repeating(
    directory: Directory, control: Control, error: ForcegateError, state: str
) -> None:
    control.say("UNAVAILABLE", f"Internal: {error.to_wire()}")
    run(directory.poll)
    assert directory.entry(NAME).state == state
    with pytest.raises(type(error), match=error.detail[:20]) as caught:
        directory.facts(NAME)
    assert caught.value.status == 409


def test_a_failure_in_tritons_words_is_told_in_ours(directory: Directory, control: Control) -> None:
    control.say("UNAVAILABLE", "Internal: Failed to initialize Python stub: /secret/path")
    run(directory.poll)
    with pytest.raises(EnvironmentBroken) as caught:
        directory.facts(NAME)
    assert "secret" not in str(caught.value)


def test_a_process_that_ended_while_it_loaded_is_worth_waiting_for(directory: Directory, control: Control) -> None:
    control.say("UNAVAILABLE", "Internal: Stub process 'lj-argon_0_0' is not healthy.")
    run(directory.poll)
    assert directory.entry(NAME).state == LOADING
    with pytest.raises(ModelNotReady) as caught:
        directory.facts(NAME)
    assert caught.value.retryable


def test_a_missing_checkpoint_names_its_file_and_hash(directory: Directory, tmp_path: Path) -> None:
    (tmp_path / "repository" / NAME / "1" / VARIANT.checkpoint.file).unlink()
    run(directory.poll)
    assert directory.entry(NAME).state == MISSING
    with pytest.raises(CheckpointMissing, match=VARIANT.checkpoint.sha256):
        directory.facts(NAME)
    with pytest.raises(CheckpointMissing):
        run(lambda: directory.load(NAME, 1))


def test_an_unknown_name_is_answered_with_near_ones(directory: Directory) -> None:
    with pytest.raises(UnknownModel, match="sevennet-0"):
        directory.entry("sevenet-0")


def test_while_the_server_is_away_models_are_being_brought_back(directory: Directory, control: Control) -> None:
    async def steps() -> None:
        control.say("READY")
        await directory.poll()
        control.away = True
        await directory.poll()
        assert not directory.reachable
        assert directory.entry(NAME).state == LOADING
        assert directory.facts(NAME).model == NAME  # asked for all the same: the call itself finds out
        control.away = False
        await directory.poll()
        assert directory.entry(NAME).state == READY

    run(steps)


def test_a_dead_process_shows_though_triton_calls_it_ready(directory: Directory, control: Control, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    async def steps() -> None:
        control.say("READY")
        report(tmp_path, process.pid)
        await directory.poll()
        assert directory.entry(NAME).state == READY
        process.kill()
        process.communicate()
        await directory.poll()
        assert directory.entry(NAME).state == LOADING
        assert directory.recently_ready(NAME)
        assert directory.process(NAME) == process.pid
        report(tmp_path, os.getpid(), time=2.0)
        await directory.poll()
        assert directory.entry(NAME).state == READY

    run(steps)


def test_a_model_with_two_processes_is_there_while_one_lives(directory: Directory, control: Control, tmp_path: Path) -> None:
    newest = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    async def steps() -> None:
        control.say("READY")
        report(tmp_path, newest.pid, pids=[os.getpid(), newest.pid])
        await directory.poll()
        both = directory.entry(NAME).report
        assert both.pid == directory.process(NAME) == newest.pid
        newest.kill()
        newest.communicate()
        await directory.poll()
        assert directory.entry(NAME).state == READY
        one = directory.entry(NAME).report
        assert one.pid == directory.process(NAME) == os.getpid()
        assert 0 < (one.memory_mb or 0) < (both.memory_mb or 0)

    run(steps)


def test_a_hidden_model_shows_only_while_it_is_served(directory: Directory) -> None:
    shown = {entry.variant.name for entry in directory.entries()}
    assert {name for name, variant in CATALOGUE.variants.items() if not variant.hidden} == shown
