"""What runs out of memory in a batch or a comparison is evaluated once more when the scheduler has made room, and nothing else is.

The models are a fault injector whose energy is the number of atoms, with memory for so many; the scheduler is the real one, over
its socket, on a machine that keeps its books.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.repository import parameters
from forcefields import catalogue
from forcegate.structure import Structure
from frontend import calculations
from frontend.requests import Batch, MultiModel, Options
from frontend.scheduler.server import Server
from frontend.service import Service
from frontend.settings import Settings
from frontend.telemetry import Call, Metrics
from frontend.triton.client import Evaluator
from frontend.triton.directory import READY, Entry
from frontend.triton.facts import Facts
from tests.unit.fault_injection import FaultyTriton, serving
from tests.unit.scheduler.scene import Scene

SMALL, LARGE = "lj-argon", "chgnet-0.3.0"
PLAIN = Options(dispersion="none")


class Known:
    """Stands for the directory: every model of the catalogue is there, and would be loaded when it is asked for."""

    on_demand = True

    def __init__(self) -> None:
        self._catalogue = catalogue.load()

    def facts(self, name: str) -> Facts:
        variant = self._catalogue.resolve(name)
        values = parameters(variant, self._catalogue.family_of(variant))
        return Facts.from_config(variant.name, {"parameters": {key: {"string_value": value} for key, value in values.items()}})

    def entry(self, name: str) -> Entry:
        variant = self._catalogue.resolve(name)
        return Entry(variant, self._catalogue.family_of(variant), READY, facts=self.facts(name))

    def last_process(self, _name: str) -> int | None:
        return None


def chain(atoms: int) -> Structure:
    return Structure(np.full(atoms, 18, np.int32), np.arange(3.0 * atoms).reshape(-1, 3))


class Stage:
    """A gateway's parts between the fault injector and, where there is one, a scheduler."""

    def __init__(self, folder: Path, triton: FaultyTriton, room: Mapping[str, int] | None) -> None:
        self.folder, self.triton, self._room = folder, triton, room
        self.asked: list[str] = []
        """Models that the scheduler was asked for room for."""
        self.sent_before = 0

    async def _make_room(self, message: Mapping[str, Any]) -> None:
        self.asked.append(message["model"])
        self.sent_before = len(self.triton.requests)
        assert self._room is not None
        self.triton.fits |= self._room

    def sent(self, since: int = 0) -> Counter[tuple[str, int]]:
        """How often each structure was sent, by model and its number of atoms."""
        found: Counter[tuple[str, int]] = Counter()
        for request in self.triton.requests[since:]:
            numbers = np.frombuffer(request.raw_input_contents[0], dtype=np.int32).reshape(request.inputs[0].shape)
            found.update((request.model_name, int(count)) for count in np.count_nonzero(numbers, axis=1))
        return found

    def play(self, calculate: Callable[[Service, Call], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        async def run(address: str) -> dict[str, Any]:
            directory: Any = Known()
            service = Service(Settings(state=self.folder))
            service.directory, service.evaluator = directory, Evaluator(address, directory, Metrics())
            scene = Scene(self.folder)
            scene.server = Server(
                scene.owner, self.folder, scene.nothing, lambda: {"models": {}}, {"out of memory": self._make_room}
            )
            following = asyncio.create_task(service.residency.run())
            call = Call("test", time.perf_counter())
            call.allow(20)
            try:
                if self._room is not None:
                    await scene.start()
                    async with asyncio.timeout(5):
                        while not service.residency.connected:  # noqa: ASYNC110
                            await asyncio.sleep(0.01)
                return await calculate(service, call)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                await scene.stop()
                await service.evaluator.close()

        with serving(self.triton) as address:
            return asyncio.run(run(address))


def batch_of(*atoms: int) -> Callable[[Service, Call], Awaitable[dict[str, Any]]]:
    task = Batch(SMALL, PLAIN, tuple(map(chain, atoms)))
    return lambda service, call: calculations.batch(service, task, call)


def outcomes(answer: dict[str, Any]) -> list[float | str]:
    return [entry["error"]["code"] if "error" in entry else entry["energy"] for entry in answer["results"]]


@pytest.fixture
def triton() -> FaultyTriton:
    made = FaultyTriton()
    made.fits = {SMALL: 4}
    return made


def test_the_structures_of_a_batch_that_did_not_fit_and_no_others_are_evaluated_again(tmp_path: Path, triton: FaultyTriton) -> None:
    stage = Stage(tmp_path, triton, {SMALL: 8})
    answer = stage.play(batch_of(2, 6, 3, 9, 4, 7))
    assert outcomes(answer) == [2, 6, 3, "out_of_memory", 4, 7]
    assert (answer["succeeded"], answer["failed"]) == (5, 1)
    assert stage.asked == [SMALL], "room is made once for all of them"
    assert set(stage.sent(stage.sent_before)) == {(SMALL, 6), (SMALL, 9), (SMALL, 7)}


def test_without_a_scheduler_they_have_their_errors_at_once(tmp_path: Path, triton: FaultyTriton) -> None:
    stage = Stage(tmp_path, triton, None)
    assert outcomes(stage.play(batch_of(2, 6, 3))) == [2, "out_of_memory", 3]
    assert stage.asked == []


def test_a_batch_that_fits_asks_for_no_room(tmp_path: Path, triton: FaultyTriton) -> None:
    stage = Stage(tmp_path, triton, {SMALL: 8})
    assert outcomes(stage.play(batch_of(2, 4, 3))) == [2, 4, 3]
    assert stage.asked == []
    assert set(stage.sent().values()) == {1}


def test_the_model_of_a_comparison_that_ran_out_and_no_other_is_asked_again(tmp_path: Path, triton: FaultyTriton) -> None:
    task = MultiModel((SMALL, LARGE), "single_point", PLAIN, {}, False, chain(6))
    stage = Stage(tmp_path, triton, {SMALL: 8})
    answer = stage.play(lambda service, call: calculations.multi_model(service, task, call))
    assert [result["status"] for result in answer["results"]] == ["success", "success"]
    assert [result["result"]["energy"] for result in answer["results"]] == [6, 6]
    assert stage.asked == [SMALL]
    assert stage.sent() == {(SMALL, 6): 2, (LARGE, 6): 1}


def test_a_model_of_a_comparison_that_has_too_little_all_the_same_leaves_the_others(tmp_path: Path, triton: FaultyTriton) -> None:
    task = MultiModel((SMALL, LARGE), "single_point", PLAIN, {}, False, chain(9))
    stage = Stage(tmp_path, triton, {SMALL: 8})
    answer = stage.play(lambda service, call: calculations.multi_model(service, task, call))
    assert [(result["error"] or {}).get("code") for result in answer["results"]] == ["out_of_memory", None]
    assert stage.sent() == {(SMALL, 9): 2, (LARGE, 9): 1}
