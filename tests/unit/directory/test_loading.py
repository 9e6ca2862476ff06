"""Loading through the directory of models: what fails, what is waited for, and what goes on answering meanwhile."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forcegate.errors import (
    GateFailed,
    ModelNotReady,
    ServerUnavailable,
    UnsupportedDtype,
)
from frontend.triton.control import ModelState
from frontend.triton.directory import FAILED, LOADABLE, LOADING, READY, Directory
from tests.unit.directory.control import CATALOGUE, NAME, Control, failed, report, run


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
