"""The heartbeat of models, on a clock of the test: who is asked, who is ended, and who is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from forcegate.errors import EvaluationFailed, ForcegateError, GateFailed
from frontend.scheduler.device import Device
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.owner import Owner
from frontend.scheduler.policy import Policy
from frontend.supervisor.heartbeat import Heartbeat
from frontend.triton.control import Answers


class Scene:
    """One model that answers, or does not, and the heartbeat that looks at it once a second."""

    def __init__(self) -> None:
        self.now, self.cpu, self.well, self.failed = 0.0, 0.0, 0, 0
        self.computes = 0.0
        self.processes: dict[str, frozenset[int]] = {"m": frozenset({7})}
        self.error: ForcegateError | None = None
        self.silent = False
        self.asked: list[float] = []
        self.dead: list[tuple[float, str]] = []
        self.used: list[float] = []
        self.heart = Heartbeat(
            self,
            self,
            self.ask,
            lambda _, why: self.dead.append((self.now, why)),
            self.note,
            clock=self.time,
            cpu_seconds=self.spent,
        )

    def time(self) -> float:
        return self.now

    def spent(self, processes: Iterable[int]) -> float:  # noqa: ARG002
        return self.cpu

    def note(self, models: Iterable[str]) -> None:  # noqa: ARG002
        self.used.append(self.now)

    async def answers(self) -> dict[str, Answers]:
        return dict.fromkeys(self.processes, Answers(self.well, self.failed))

    def steady(self) -> dict[str, frozenset[int]]:
        return self.processes

    def end(self, model: str) -> None:
        self.processes[model] = frozenset({max(self.processes[model]) + 1})

    async def ask(self, model: str) -> None:  # noqa: ARG002
        self.asked.append(self.now)
        if self.silent:
            await asyncio.sleep(3600)
        if self.error is not None:
            self.failed += 1
            raise self.error
        self.well += 1

    async def pass_by(self, seconds: int, each: Callable[[], None] = lambda: None) -> None:
        for _ in range(seconds):
            each()
            await self.heart.look()
            for _ in range(3):
                await asyncio.sleep(0)
            self.now += 1.0
            self.cpu += self.computes


def play(steps: Callable[[Scene], Awaitable[None]]) -> Scene:
    async def run() -> Scene:
        scene = Scene()
        await steps(scene)
        return scene

    return asyncio.run(run())


def test_an_idle_model_is_asked_every_ten_seconds_and_that_is_no_use_of_it() -> None:
    scene = play(lambda scene: scene.pass_by(60))
    assert scene.asked == [10, 20, 30, 40, 50]
    assert (scene.dead, scene.used) == ([], [])


def test_a_model_that_answers_somebody_is_not_asked_and_counts_as_used() -> None:
    def answered(scene: Scene) -> None:
        scene.well += 1

    scene = play(lambda scene: scene.pass_by(60, lambda: answered(scene)))
    assert scene.asked == []
    assert len(scene.used) == 59, "at every look but the first"


def test_errors_are_a_use_but_no_good_answer() -> None:
    def failed(scene: Scene) -> None:
        scene.failed += 1

    scene = play(lambda scene: scene.pass_by(12, lambda: failed(scene)))
    assert scene.asked == [10]
    assert len(scene.used) >= 9


def test_a_model_that_is_silent_and_computes_nothing_is_ended_after_thirty_seconds() -> None:
    async def steps(scene: Scene) -> None:
        scene.silent = True
        await scene.pass_by(35)
        scene.silent = False
        await scene.pass_by(25)

    scene = play(steps)
    assert [at for at, _ in scene.dead] == [30]
    assert scene.asked == [10, 41, 51], "the one that was loaded in its place has its own time"
    assert scene.heart.as_dict()["deaths"] == {"m": 1}


def test_a_model_that_computes_for_long_is_left_alone() -> None:
    async def steps(scene: Scene) -> None:
        scene.silent, scene.computes = True, 0.5
        await scene.pass_by(300)
        assert scene.dead == []
        scene.computes = 0.0
        await scene.pass_by(30)

    assert [at for at, _ in play(steps).dead] == [320], "twenty seconds after it has stopped"


def test_a_model_whose_every_evaluation_fails_is_ended_although_it_answers() -> None:
    async def steps(scene: Scene) -> None:
        scene.error, scene.computes = EvaluationFailed("CUDA error: an illegal memory access was encountered"), 0.5
        await scene.pass_by(32)

    ((at, why),) = play(steps).dead
    assert at == 30
    assert "illegal memory access" in why


def test_one_bad_answer_is_forgiven() -> None:
    async def steps(scene: Scene) -> None:
        scene.error = EvaluationFailed("once")
        await scene.pass_by(11)
        scene.error = None
        await scene.pass_by(60)

    assert play(steps).dead == []


def test_a_wrong_energy_is_not_waited_for() -> None:
    async def steps(scene: Scene) -> None:
        scene.error = GateFailed("m answers differ by 3 eV/atom.")
        await scene.pass_by(12)

    assert play(steps).dead == [(10, "m answers differ by 3 eV/atom.")]


@pytest.mark.parametrize(("count", "active"), [(1, True), (2, True), (2, False)])
def test_repeated_faults_empty_a_device_only_where_its_models_have_another(tmp_path: Path, count: int, active: bool) -> None:
    devices = [Device(f"gpu-{k}", k, "gpu", "GPU", 80_000, 0) for k in range(count)]
    owner = Owner(None, lambda: devices, Policy(), Footprints(tmp_path / "footprints.json"), active)
    for _ in range(3):
        owner.fault("gpu-0", "m: it has not answered")
    assert owner.tally.faults == {"gpu-0": 3}, "which is what an alert looks at, whatever is done"
    assert owner.ward.of("gpu-0").takes_work == (not (active and count > 1))
    assert owner.tally.quarantines == (active and count > 1)
