"""The directory of models: what Triton, the catalogue and the models' reports say together."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporters.repository import parameters
from forcefields import catalogue
from forcefields.catalogue import Catalogue
from forcegate.errors import (
    CheckpointMismatch,
    CheckpointMissing,
    EnvironmentBroken,
    ForcegateError,
    GateFailed,
    ModelNotReady,
    ServerUnavailable,
    UnknownModel,
    UnsupportedDtype,
)
from frontend.triton.control import ModelState
from frontend.triton.directory import FAILED, LOADABLE, LOADING, MISSING, READY, Directory

NAME = "lj-argon"
CATALOGUE = catalogue.load()
VARIANT = CATALOGUE.variants[NAME]


class Control:
    """Stands for Triton's control API: says what the test tells it to say."""

    def __init__(self) -> None:
        self.index: dict[str, ModelState] = {}
        self.parameters = parameters(VARIANT, CATALOGUE.family_of(VARIANT))
        self.away = False
        self.failure: ForcegateError | None = None
        self.reloads = 0
        self.slow = asyncio.Event()
        self.slow.set()

    def say(self, state: str, reason: str = "") -> None:
        self.index = {NAME: ModelState(NAME, state, reason)}

    async def states(self) -> dict[str, ModelState]:
        if self.away:
            raise ServerUnavailable("away")
        return self.index

    async def config(self, _name: str) -> dict[str, Any]:
        return {"parameters": {key: {"string_value": value} for key, value in self.parameters.items()}}

    async def load(self, _name: str) -> None:
        await asyncio.sleep(0.05)
        await self.slow.wait()
        if self.failure is not None:
            self.say("UNAVAILABLE", self.failure.to_wire())
            raise self.failure
        self.say("READY")

    async def load_in(self, name: str, dtype: str, _repositories: object) -> None:
        await self.load(name)
        self.parameters["dtype"] = dtype

    async def reload(self, name: str, dtype: str = "") -> None:
        self.reloads += 1
        await self.load(name)
        self.parameters["dtype"] = dtype or self.parameters["dtype"]

    async def unload(self, _name: str) -> None:
        self.say("UNAVAILABLE", "unloaded")


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def directory(tmp_path: Path, control: Control) -> Directory:
    checkpoint = tmp_path / "repository" / NAME / "1" / VARIANT.checkpoint.file
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "reports").mkdir()
    return Directory(control, CATALOGUE, (tmp_path / "repository",), tmp_path)  # type: ignore[arg-type]


def report(directory: Path, pid: int, **more: object) -> None:
    (directory / "reports" / f"{NAME}.json").write_text(
        json.dumps({"model": NAME, "ready": True, "pid": pid, "device": "cpu"} | more)
    )


def run(steps: Callable[[], Any]) -> Any:
    return asyncio.run(steps())


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


def failed(directory: Path, error: ForcegateError, pid: int) -> None:
    """The report of a process that refused to serve, and has ended."""
    told = {"code": error.code, "detail": error.detail, "hint": error.hint}
    report(directory, pid, ready=False, error=told, time=2.0)


def test_a_dead_model_that_could_not_be_brought_back_has_failed(directory: Directory, control: Control, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    async def steps() -> None:
        control.say("READY")
        report(tmp_path, process.pid)
        await directory.poll()
        process.kill()
        process.communicate()
        # The process that refused may be seen in its last moments: it is not the one that Triton sends requests to.
        failed(tmp_path, GateFailed("Forces differ."), os.getpid())
        for _ in range(2):
            await directory.poll()
            assert directory.entry(NAME).state == FAILED
            with pytest.raises(GateFailed, match="Forces differ"):
                directory.facts(NAME)
        assert not directory.recently_ready(NAME)
        # Triton takes it for ready, so that only a changed configuration makes it load anything.
        report(tmp_path, os.getpid(), time=3.0)
        assert directory.entry(NAME).state == FAILED
        assert (await directory.load(NAME, 5)).state == READY
        assert control.reloads == 1

    run(steps)


def test_a_reload_that_failed_leaves_the_copy_that_is_alive(directory: Directory, control: Control, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()

    async def steps() -> None:
        control.say("READY")
        report(tmp_path, os.getpid())
        await directory.poll()
        failed(tmp_path, GateFailed("Forces differ."), process.pid)
        await directory.poll()
        assert directory.entry(NAME).state == READY
        assert directory.facts(NAME).model == NAME

    run(steps)


def test_loading_waits_for_the_model_but_not_for_ever(directory: Directory, control: Control) -> None:
    async def steps() -> None:
        await directory.poll()
        first, second = await asyncio.gather(directory.load(NAME, 5), directory.load(NAME, 0.001))
        assert (first.state, second.state) == (READY, LOADING)
        assert (await directory.unload(NAME)).state == LOADABLE
        with pytest.raises(ModelNotReady):
            directory.facts(NAME)
        control.failure = GateFailed("Forces differ.")
        with pytest.raises(GateFailed):
            await directory.load(NAME, 5)
        assert directory.entry(NAME).state == FAILED

    run(steps)


def test_a_hidden_model_shows_only_while_it_is_served(directory: Directory) -> None:
    shown = {entry.variant.name for entry in directory.entries()}
    assert {name for name, variant in CATALOGUE.variants.items() if not variant.hidden} == shown


@pytest.fixture
def both(tmp_path: Path, control: Control) -> Directory:
    """The directory of a catalogue whose model can be evaluated in two dtypes."""
    family = CATALOGUE.family_of(VARIANT)
    either = replace(VARIANT, dtypes=("float64", "float32"))
    families = {**CATALOGUE.families, family.name: replace(family, variants=(either,))}
    checkpoint = tmp_path / "repository" / NAME / "1" / VARIANT.checkpoint.file
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    return Directory(control, Catalogue(families), (tmp_path / "repository",), tmp_path)  # type: ignore[arg-type]


def test_loading_in_another_dtype_replaces_the_copy_that_goes_on_answering(both: Directory, control: Control) -> None:
    async def steps() -> None:
        assert (await both.load(NAME, 5, "float32")).dtype == "float32"
        assert (await both.load(NAME, 5)).dtype == "float32", "without a wish it stays as it is"
        assert control.reloads == 0
        control.slow.clear()
        waiting = await both.load(NAME, 0.01, "float64")
        assert waiting.state == LOADING
        await both.poll()
        assert both.facts(NAME).dtype == "float32", "the old copy answers until the new one is there"
        control.slow.set()
        # The third caller wants what the second one is about to replace: whoever asks last has it.
        assert (await both.load(NAME, 5, "float32")).dtype == "float32"
        assert control.reloads == 2
        assert both.facts(NAME).dtype == "float32"

    run(steps)


def test_a_dtype_that_the_model_does_not_have_is_refused(directory: Directory, control: Control) -> None:
    control.say("READY")
    run(directory.poll)
    with pytest.raises(UnsupportedDtype, match="float64"):
        run(lambda: directory.load(NAME, 1, "float32"))
    assert control.reloads == 0


def test_facts_are_read_again_when_the_report_speaks_of_another_dtype(both: Directory, control: Control, tmp_path: Path) -> None:
    """A new process writes its report a moment before Triton puts it in the old one's place."""
    (tmp_path / "reports").mkdir()

    async def steps() -> None:
        control.say("READY")
        report(tmp_path, os.getpid(), dtype="float32")
        await both.poll()
        assert both.facts(NAME).dtype == "float64"
        control.parameters["dtype"] = "float32"
        await both.poll()
        assert both.facts(NAME).dtype == "float32"

    run(steps)


def test_what_was_asked_before_a_load_does_not_overwrite_what_was_asked_after_it(
    both: Directory, control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll that is told of the old copy, late: the load that has ended in between has the last word."""
    (tmp_path / "reports").mkdir()
    ask, held = control.config, asyncio.Event()

    async def late(name: str) -> dict[str, Any]:
        answer = await ask(name)
        if control.parameters["dtype"] == "float64":
            await held.wait()
        return answer

    async def steps() -> None:
        control.say("READY")
        await both.poll()
        report(tmp_path, os.getpid(), dtype="float32")  # a new process tells of itself before it takes the old one's place
        monkeypatch.setattr(control, "config", late)
        poll = asyncio.create_task(both.poll())
        load = asyncio.create_task(both.load(NAME, 5, "float32"))
        await asyncio.sleep(0.3)  # the load takes 0.05 s
        assert control.parameters["dtype"] == "float32"
        held.set()
        await poll
        assert (await load).dtype == "float32"
        assert both.facts(NAME).dtype == "float32"

    run(steps)


@pytest.mark.parametrize("failures", [0, 1, 2, 5])
def test_a_start_waits_for_a_server_that_fails_to_answer_at_first_and_not_for_one_that_is_away(
    tmp_path: Path, failures: int
) -> None:
    control = Control()
    control.say("READY")
    asked = 0
    told = control.states

    async def states() -> dict[str, ModelState]:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise ServerUnavailable("not yet")
        return await told()

    control.states = states  # type: ignore[method-assign]

    async def started() -> bool:
        directory = Directory(control, CATALOGUE, (tmp_path,), tmp_path)  # type: ignore[arg-type]
        polling = asyncio.create_task(directory.run())
        await asyncio.wait_for(directory.first_poll(), 0.9)
        polling.cancel()
        return directory.reachable

    assert asyncio.run(started()) == (failures < 3)
