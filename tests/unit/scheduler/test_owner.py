"""The owner of the residents on a machine that keeps its books: budget, holds, failures, clients that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from forcegate.errors import EnvironmentBroken, ModelNotReady
from frontend.scheduler import carrier
from frontend.scheduler.follower import Follower
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.policy import Policy
from frontend.supervisor.overview import overview
from tests.unit.scheduler.scene import BUDGET, NAMES, REPLICAS, SIZE, Scene, becomes


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


def test_work_under_way_is_told_by_device_until_its_client_ends(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        (one, _), (other, connection) = await scene.follower(), await scene.follower()

        async def told(count: int) -> None:
            await becomes(lambda: overview(scene.owner, True, 60.0)["devices"][0]["in_flight"] == count)

        works = [asyncio.create_task(scene.use(one, "m0", work=2.0)) for _ in range(3)]
        long = asyncio.create_task(scene.use(other, "m1", work=60.0))
        await told(4)
        connection.cancel()
        await told(3)
        await asyncio.gather(*works)
        await told(0)
        long.cancel()

    play(steps)


def test_a_model_that_nobody_uses_goes_before_an_instance_of_one_in_use(
    play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.scheduler.owner.IN_USE_SECONDS", 0.8)

    async def steps(scene: Scene) -> None:
        one, other = (await scene.follower())[0], (await scene.follower())[0]
        await scene.use(other, "m1")
        one.waiting = lambda: {"m0": 30.0}
        work = asyncio.create_task(scene.use(one, "m0", work=2.5))
        life = scene.owner.life("m0")
        await becomes(lambda: life.instances == {"cpu": 2} and not life.scaling)
        one.waiting = dict
        await asyncio.sleep(0.8)
        await scene.use(other, "m2", priority=2)
        assert (set(scene.books.there), life.instances) == ({"m0", "m2"}, {"cpu": 2})
        await work

    assert play(steps, policy=REPLICAS).books.most <= BUDGET


def test_a_model_that_nobody_uses_makes_way_for_an_instance_on_its_device(
    play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.scheduler.replicas.UNUSED_SECONDS", 0.5)

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        await scene.use(one, "m1")
        one.waiting = lambda: {"m0": 30.0}
        work = asyncio.create_task(scene.use(one, "m0", work=2.5))
        life = scene.owner.life("m0")
        await becomes(lambda: len(life.instances) == 2)
        assert scene.owner.life("m1").state == "evicted"
        await work

    assert play(steps, policy=replace(REPLICAS, models_per_device=1), two=True).owner.tally.evictions == {"instance": 1}


def test_a_load_that_ends_on_a_device_that_was_drained_meanwhile_does_not_stay(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        scene.books.load_seconds = 0.3
        coming = asyncio.create_task(scene.use(one, "m0"))
        await asyncio.sleep(0.1)
        first = scene.owner.life("m0").device
        scene.owner.ward.of(first).drain("a person")
        scene.owner.empty(first, "drain")
        await coming
        await becomes(lambda: not scene.books.there)
        await scene.use(one, "m0")
        assert scene.owner.life("m0").device != first

    play(steps, two=True)
