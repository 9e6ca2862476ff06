"""The owner of the residents on a machine that keeps its books: budget, holds, failures, clients that die."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from forcegate.errors import EnvironmentBroken, ForcegateError, ModelNotReady, NoRoom
from frontend.scheduler import application, carrier
from frontend.scheduler.application import apply
from frontend.scheduler.device import Device
from frontend.scheduler.follower import Follower
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.owner import Owner
from frontend.scheduler.policy import Policy
from frontend.scheduler.server import Server

SIZE, BUDGET = 300, 1000
NAMES = [f"m{k}" for k in range(8)]


class Books:
    """A machine that says what is on it, and what was most on it."""

    def __init__(self) -> None:
        self.there: dict[str, int] = {}
        self.most = 0
        self.loads: Counter[str] = Counter()
        self.unloads: Counter[str] = Counter()
        self.failing: dict[str, ForcegateError] = {}
        self.hanging: set[str] = set()
        self.keeping: set[str] = set()
        self.ended: list[str] = []
        self.in_use: Counter[str] = Counter()

    async def load(self, model: str, device: Device, dtype: str) -> None:  # noqa: ARG002
        self.loads[model] += 1
        self.there[model] = SIZE // 2
        await asyncio.sleep(0.002)
        if model in self.hanging:
            await asyncio.sleep(60)
        if model in self.failing:
            del self.there[model]
            raise self.failing[model]
        self.there[model] = SIZE
        self.most = max(self.most, sum(self.there.values()))

    async def unload(self, model: str) -> None:
        assert not self.in_use[model], "unloaded with work in flight"
        self.unloads[model] += 1
        await asyncio.sleep(0.002)
        if model not in self.keeping:
            del self.there[model]

    def look(self) -> None:
        """What holds memory is known at all times here."""

    def held_mb(self, model: str, device: Device) -> int:  # noqa: ARG002
        return self.there.get(model, 0)

    def end(self, model: str) -> None:
        self.ended.append(model)
        self.there.pop(model, None)

    def family(self, model: str) -> str:  # noqa: ARG002
        return "family"


class Scene:
    """An owner, its server in a folder, and clients of it."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.books, self.folder, self.two = Books(), folder, options.pop("two", False)
        policy = options.pop("policy", Policy(margin_mb=0, models_per_device=16))
        self.owner = Owner(self.books, self.devices, policy, Footprints(folder / "footprints.json"), **options)
        self.server = Server(self.owner, folder, self.nothing, lambda: {"models": {}}, {})
        self.tasks: list[asyncio.Task[None]] = []

    def devices(self) -> list[Device]:
        if self.two:
            return [Device(f"gpu-{k}", k, "gpu", "GPU", BUDGET, 0) for k in range(2)]
        return [Device("cpu", 0, "cpu", "CPU", BUDGET, sum(self.books.there.values()))]

    async def nothing(self) -> None:
        return

    async def start(self) -> None:
        self.tasks.append(asyncio.create_task(self.server.run()))
        await asyncio.sleep(0)

    async def follower(self) -> tuple[Follower, asyncio.Task[None]]:
        made = Follower(self.folder, "test")
        task = asyncio.create_task(made.run())
        self.tasks.append(task)
        async with asyncio.timeout(5):
            while not made.connected:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return made, task

    async def use(self, follower: Follower, *models: str, seconds: float = 5.0, work: float = 0.0, priority: int = 1) -> None:
        async with follower.hold(models, asyncio.get_running_loop().time() + seconds, priority):
            assert all(self.books.there.get(model) == SIZE for model in models), "granted before it was there"
            self.books.in_use.update(models)
            try:
                await asyncio.sleep(work)
            finally:
                self.books.in_use.subtract(models)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Scene]:
    def run(steps: Callable[[Scene], Awaitable[None]], **options: Any) -> Scene:
        async def whole() -> Scene:
            scene = Scene(tmp_path, **options)
            await scene.start()
            try:
                async with asyncio.timeout(30):
                    await steps(scene)
            finally:
                await scene.stop()
            return scene

        return asyncio.run(whole())

    return run


def test_a_random_stream_over_eight_models_in_the_memory_of_three(play: Callable[..., Scene]) -> None:
    requests = 0

    async def steps(scene: Scene) -> None:
        nonlocal requests
        followers = [(await scene.follower())[0] for _ in range(2)]
        draw = random.Random(1)

        async def client(follower: Follower) -> None:
            nonlocal requests
            for _ in range(20):
                await scene.use(follower, draw.choice(NAMES), seconds=20, work=0.001)
                requests += 1

        await asyncio.gather(*(client(followers[k % 2]) for k in range(16)))

    scene = play(steps)
    assert requests == 320
    assert scene.books.most <= BUDGET
    assert sum(scene.books.loads.values()) < 0.5 * requests
    assert scene.owner.tally.not_given_back == 0
    assert sum(scene.books.unloads.values()) == sum(scene.owner.tally.evictions.values()) > 5


def test_work_in_flight_keeps_its_model_and_whoever_comes_later_waits(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one, other = (await scene.follower())[0], (await scene.follower())[0]
        await scene.use(one, "m0")  # measured, so that three are known to fit
        long = [asyncio.create_task(scene.use(one, name, work=0.4)) for name in NAMES[:3]]
        await asyncio.sleep(0.1)
        with pytest.raises(ModelNotReady) as refused:
            await scene.use(other, "m5", seconds=0.4)
        assert refused.value.retry_after
        await scene.use(other, "m5", seconds=5)
        await asyncio.gather(*long)

    assert play(steps).books.most <= BUDGET


def test_two_models_that_are_used_together_come_together(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        await asyncio.gather(*(scene.use(one, *pair) for pair in (("m0", "m1"), ("m2", "m3"), ("m4", "m5"), ("m1", "m7"))))

    assert play(steps).books.most <= BUDGET


def test_a_load_that_fails_is_told_and_tried_again_later(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        scene.books.failing["m0"] = EnvironmentBroken("Broken.")
        scene.books.failing["m1"] = ModelNotReady("Not now.")
        with pytest.raises(EnvironmentBroken):
            await scene.use(one, "m0")
        with pytest.raises(ModelNotReady) as refused:
            await scene.use(one, "m1")
        assert 1 <= (refused.value.retry_after or 0) <= 5
        with pytest.raises(ModelNotReady):
            await scene.use(one, "m1")
        assert scene.books.loads["m1"] == 1, "not while it pauses"
        scene.books.failing.clear()
        scene.owner.life("m1").residency.retry_at = float("-inf")
        await scene.use(one, "m1")
        await scene.use(one, "m2")

    play(steps)


def test_a_load_that_hangs_is_given_up_and_its_memory_taken_back(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        scene.books.hanging.add("m0")
        with pytest.raises(ModelNotReady, match="had not ended"):
            await scene.use(one, "m0")
        assert scene.books.ended == ["m0"]
        assert scene.books.there == {}

    play(steps, load_seconds=0.2)


def test_an_unload_that_frees_nothing_ends_the_process(play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrier, "GONE_SECONDS", 0.2)

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        scene.books.keeping.add("m0")
        for name in NAMES[:4]:
            await scene.use(one, name)
        assert scene.books.ended == ["m0"]
        assert scene.owner.tally.not_given_back == 1

    assert play(steps).books.most <= BUDGET


def test_a_client_that_is_killed_in_the_middle_of_a_load_holds_nothing(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        (one, task), (other, _) = await scene.follower(), await scene.follower()
        await scene.use(other, "m0")
        waits = [asyncio.create_task(scene.use(one, name, work=60)) for name in NAMES[:3]]
        await asyncio.sleep(0.001)
        task.cancel()  # its connection ends as it does when the kernel closes it
        for wait in waits:
            wait.cancel()
        for name in NAMES[3:6]:
            await scene.use(other, name)
        await asyncio.gather(*waits, return_exceptions=True)
        assert not any(ask.client.name.startswith("test") and ask.models[0] in NAMES[:3] for ask in scene.owner.asks)

    play(steps)


def test_what_nobody_uses_goes_and_what_is_pinned_stays(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        await scene.use(one, "m1")
        async with asyncio.timeout(10):
            while "m1" in scene.books.there:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "m0" in scene.books.there

    policy = Policy(margin_mb=0, models_per_device=16, idle_seconds=0.5, pinned=frozenset({"m0"}))
    assert play(steps, policy=policy).owner.tally.evictions == {"idle": 1}


def test_what_was_measured_survives_a_restart(play: Callable[..., Scene], tmp_path: Path) -> None:
    async def steps(scene: Scene) -> None:
        await scene.use((await scene.follower())[0], "m0")

    play(steps)
    assert Footprints(tmp_path / "footprints.json").base_mb("m0", "cpu") == SIZE


def test_a_model_that_ran_out_of_memory_gets_a_fifth_more_at_the_cost_of_its_neighbours(
    play: Callable[..., Scene], tmp_path: Path
) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        for name in NAMES[:3]:
            await scene.use(one, name)
        scene.owner.ran_out("m2", 5000, 1)
        assert len(scene.books.there) == 3, "360 and 600 of 1,000 MB"
        scene.owner.ran_out("m2", 5000, 1)
        await asyncio.wait_for(scene.owner.room_made("m2"), 5)
        assert set(scene.books.there) == {"m1", "m2"}, "the least recently used has left"
        scene.owner.tick()
        assert set(scene.books.there) == {"m1", "m2"}
        await scene.use(one, "m0")
        assert scene.owner.life("m2").device, "used last, so it stays"

    scene = play(steps)
    assert scene.books.most <= BUDGET
    assert scene.owner.tally.out_of_memory == {"m2": 2}
    known = Footprints(tmp_path / "footprints.json").of("m2", "cpu")
    assert (known.base_mb, known.raised, known.out_of_memory) == (SIZE, pytest.approx(1.44), 2)
    assert known.need_mb(0, BUDGET) == 432
    assert known.need_mb(0, 400) == 400, "what is added for safety keeps it from no device"


def test_a_model_that_ran_out_of_memory_goes_to_a_device_with_more_and_no_more_than_once(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        before = scene.owner.life("m0").device
        work = asyncio.create_task(scene.use(one, "m0", work=0.2))
        await asyncio.sleep(0.05)
        scene.owner.ran_out("m0", 5000, 1)
        assert scene.owner.life("m0").device == before, "its work in flight is finished first"
        await work
        await scene.use(one, "m0")
        after = scene.owner.life("m0").device
        assert {before, after} == {"gpu-0", "gpu-1"}
        scene.owner.ran_out("m0", 5000, 1)
        await scene.use(one, "m0")
        assert scene.owner.life("m0").device == after

    assert play(steps, two=True).owner.tally.evictions == {"out of memory": 1}


def test_a_profile_loads_what_is_new_before_what_is_old_goes_where_there_is_room(
    play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "IN_USE_SECONDS", 0.0)  # else what the test has just used stays
    order: list[str] = []

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        for name in NAMES[:2]:
            await scene.use(one, name)
        load, unload = scene.books.load, scene.books.unload

        async def loading(model: str, device: Device, dtype: str) -> None:
            order.append(f"load {model}")
            await load(model, device, dtype)

        async def unloading(model: str) -> None:
            order.append(f"unload {model}")
            await unload(model)

        scene.books.load, scene.books.unload = loading, unloading  # type: ignore[method-assign]
        work = [asyncio.create_task(scene.use(one, name, work=0.1)) for name in NAMES[:2]]
        await asyncio.sleep(0.02)
        policy = Policy(margin_mb=0, models_per_device=16, pinned=frozenset({"m4"}))
        await asyncio.wait_for(apply(scene.owner, policy, ["m4", "m5"]), 10)
        assert set(scene.books.there) == {"m4", "m5"}
        await asyncio.gather(*work)
        assert scene.owner.policy is policy
        await scene.use(one, "m0")  # whoever wants one that has left gets it again
        assert "m4" in scene.books.there

    scene = play(steps)
    assert order[:3] == ["load m4", "unload m0", "load m5"], "three fit, so the second new one needed room"
    assert scene.books.most <= BUDGET
    assert (scene.owner.tally.evictions["room"], scene.owner.tally.evictions["profile"]) == (1, 1)


def test_a_profile_without_models_changes_the_rules_alone_and_one_that_does_not_fit_says_so(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        await apply(scene.owner, Policy(margin_mb=0, models_per_device=1), [])
        assert set(scene.books.there) == {"m0"}
        with pytest.raises(NoRoom, match="m2 has no place under this profile"):
            await asyncio.wait_for(apply(scene.owner, Policy(margin_mb=0, models_per_device=1), ["m1", "m2"]), 10)
        assert set(scene.books.there) == {"m1"}

    play(steps)


def test_a_profile_moves_what_is_on_a_device_that_it_has_for_others(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        before = scene.owner.life("m0").device
        other = next(device.id for device in scene.devices() if device.id != before)
        policy = Policy(margin_mb=0, allowed={"m0": (other,)}, reserved={before: frozenset({"m1"})})
        await asyncio.wait_for(apply(scene.owner, policy, ["m0", "m1"]), 10)
        assert (scene.owner.life("m0").device, scene.owner.life("m1").device) == (other, before)

    play(steps, two=True)


@pytest.mark.parametrize(("priority", "gather", "early"), [(2, 2.5, False), (1, 1.5, True), (2, 0.0, True)])
def test_a_task_lets_those_of_loaded_models_go_first_but_not_for_ever(
    play: Callable[..., Scene], priority: int, gather: float, early: bool
) -> None:
    """Three models are in use all the time, and somebody wants a fourth."""

    async def steps(scene: Scene) -> None:
        one, other = (await scene.follower())[0], (await scene.follower())[0]
        for name in NAMES[:3]:
            await scene.use(one, name)
        loop = asyncio.get_running_loop()
        began, until = loop.time(), loop.time() + 1.0

        async def steady(name: str) -> None:
            while loop.time() < until:
                await scene.use(one, name, work=0.01, priority=2, seconds=20)

        streams = [asyncio.create_task(steady(name)) for name in NAMES[:3]]
        wanted = asyncio.create_task(scene.use(other, "m3", seconds=20, priority=priority))
        await asyncio.sleep(0.9)
        assert wanted.done() == early
        await wanted
        assert loop.time() - began < gather + 1.5, "its turn comes although the others are used"
        await asyncio.gather(*streams)

    policy = Policy(margin_mb=0, models_per_device=16, gather_seconds=gather)
    assert play(steps, policy=policy).owner.tally.loads["m3"] == 1
