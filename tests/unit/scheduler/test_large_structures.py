"""Large structures: their memory is there before they are evaluated, whatever comes or goes beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from frontend.scheduler.policy import Policy
from tests.unit.scheduler.scene import BUDGET, NAMES, REPLICAS, SIZE, Scene, becomes


def test_a_large_structure_gets_its_memory_before_its_model_is_loaded(play: Callable[..., Scene]) -> None:
    """Three models of 300 MB fit into 1,000; with 500 MB of work on top one does."""

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        for name in NAMES[:3]:
            await scene.use(one, name)
        await scene.use(one, "m3", edges=50_000)
        assert "m3" in scene.books.there
        assert sum(scene.books.there.values()) <= BUDGET - 50_000 / 100

    play(steps)


def test_a_larger_structure_than_before_makes_others_leave_and_smaller_ones_do_not(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        for name in NAMES[:3]:
            await scene.use(one, name)
        asks = 0
        taken = scene.owner.ask

        def counted(*args: object, **named: object) -> None:
            nonlocal asks
            asks += 1
            taken(*args, **named)  # type: ignore[arg-type]

        scene.owner.ask = counted  # type: ignore[method-assign]
        await scene.use(one, "m2", edges=1000)
        assert (len(scene.books.there), asks) == (3, 0), "what is small needs no question"
        working = asyncio.create_task(scene.use(one, "m0", work=1.8))
        await asyncio.sleep(1.2)  # uses are told every half second
        await scene.use(one, "m2", edges=30_000)
        assert set(scene.books.there) == {"m0", "m2"}, "the one that was used least lately"
        for _ in range(10):
            await scene.use(one, "m2", edges=30_000)
        assert asks == 1, "the room for structures of a size is asked for once"
        await scene.use(one, "m2", edges=60_000)
        assert set(scene.books.there) == {"m2"}
        assert scene.books.unloads["m0"] == 1
        await working
        assert scene.owner.tally.evictions["over budget"] == 2

    play(steps)


async def room_is_given_back(scene: Scene) -> None:
    """Returns when nothing is kept for m0 but what it holds."""
    await becomes(lambda: scene.owner.cluster.residents[0]["m0"].held_mb <= SIZE)


def test_the_room_for_a_large_structure_is_given_back_after_a_while(
    play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.scheduler.owner.WORK_SECONDS", 0.5)

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0", edges=60_000)
        assert scene.owner.cluster.residents[0]["m0"].held_mb > 2 * SIZE
        await room_is_given_back(scene)
        await scene.use(one, "m1")
        await scene.use(one, "m2")
        assert len(scene.books.there) == 3

    play(steps)


def test_what_no_device_could_ever_hold_is_left_to_the_model_to_refuse(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0", edges=10**9)
        await scene.use(one, "m1", edges=10**300)

    play(steps)


def test_measured_peaks_correct_what_work_is_given(play: Callable[..., Scene]) -> None:
    """Work that takes a quarter of what the calibration says leaves room for a neighbour."""

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        before = scene.owner.estimate("m0", 50_000)
        assert before == pytest.approx(SIZE + 500, abs=1)
        scene.owner.peak("m0", 50_000, 1000.0, scene.books.cost("m0"))
        assert scene.owner.estimate("m0", 50_000) == BUDGET, "no more than there is"
        for _ in range(30):
            scene.owner.peak("m0", 50_000, 125.0, scene.books.cost("m0"))
        assert scene.owner.estimate("m0", 50_000) == pytest.approx(SIZE + 125, rel=0.02)
        assert scene.owner.estimate("m0") == SIZE
        await scene.use(one, "m0", edges=50_000)
        await scene.use(one, "m1")
        assert set(scene.books.there) == {"m0", "m1"}

    play(steps)


def test_the_room_stays_while_a_large_structure_is_evaluated_however_long_that_takes(
    play: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frontend.scheduler.owner.WORK_SECONDS", 1.0)

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        long = asyncio.create_task(scene.use(one, "m0", work=3.0, edges=60_000))
        await asyncio.sleep(2.2)
        assert scene.owner.cluster.residents[0]["m0"].held_mb > 2 * SIZE
        await long
        await room_is_given_back(scene)

    play(steps)


async def grown(scene: Scene) -> None:
    """Returns when m0 has two instances."""
    one, life = (await scene.follower())[0], scene.owner.life("m0")
    one.waiting = lambda: {"m0": 30.0}
    async with asyncio.timeout(10):
        while life.instances != {"cpu": 2} or life.scaling:
            await scene.use(one, "m0", work=0.05)
    one.waiting = dict
    await scene.use(one, "m0", work=0.6)  # uses, and what waits, are told every half second


def test_instances_and_then_models_leave_until_there_is_enough(play: Callable[..., Scene]) -> None:
    """Two instances of m0 and m1 hold 900 of 1,000 MB; with 600 MB of work on top m1 has to be alone."""

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m1")
        await grown(scene)
        await scene.use(one, "m1", edges=60_000)
        assert set(scene.books.there) == {"m1"}

    assert play(steps, policy=REPLICAS).books.most <= BUDGET


def test_a_large_structure_waits_while_the_instances_of_its_model_change(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one, life = (await scene.follower())[0], scene.owner.life("m0")
        await scene.use(one, "m1")
        scene.books.scale_seconds = 0.5
        one.waiting = lambda: {"m0": 30.0}
        async with asyncio.timeout(10):
            while not life.scaling:
                await scene.use(one, "m0", work=0.05)
        one.waiting = dict
        await scene.use(one, "m0", edges=50_000)
        assert (set(scene.books.there), life.instances) == ({"m0"}, {"cpu": 1})

    assert play(steps, policy=REPLICAS).books.most <= BUDGET


def test_a_large_structure_waits_for_one_whose_model_is_on_its_way_out(play: Callable[..., Scene]) -> None:
    """m0 leaves for m1 when it has evaluated 300 MB of work; until then there is too little for 350 MB more of m2."""

    async def steps(scene: Scene) -> None:
        one, other = (await scene.follower())[0], (await scene.follower())[0]
        for name in ("m0", "m2"):
            await scene.use(one, name)
        last = asyncio.create_task(scene.use(one, "m0", work=2.0, edges=30_000))
        await scene.use(one, "m2", work=0.7)  # both are told as used in the same moment, and the first name goes
        coming = asyncio.create_task(scene.use(other, "m1"))
        await asyncio.sleep(0.05)
        assert scene.owner.life("m0").state == "leaving"
        await scene.use(one, "m2", edges=35_000)
        assert last.done()
        await coming

    assert play(steps).books.most <= BUDGET


async def leaving(scene: Scene, newcomer: str, edges: int = 0, work_edges: int = 0) -> list[asyncio.Task[None]]:
    """m0 evaluates something and is on its way out, since the newcomer has its place; m1 stays. The tasks of both."""
    one, other = (await scene.follower())[0], (await scene.follower())[0]
    for name in ("m0", "m1"):
        await scene.use(one, name)
    last = asyncio.create_task(scene.use(one, "m0", work=2.0, edges=work_edges))
    await scene.use(one, "m1", work=0.7)  # both are told as used in the same moment, and the first name goes
    coming = asyncio.create_task(scene.use(other, newcomer, edges=edges))
    await asyncio.sleep(0.05)
    assert scene.owner.life("m0").state == "leaving"
    return [last, coming]


def test_a_model_that_has_to_leave_itself_is_not_granted_meanwhile(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        tasks = await leaving(scene, "m2", edges=40_000)
        await scene.use((await scene.follower())[0], "m1", work=0.3, edges=30_000)
        await asyncio.gather(*tasks)
        assert scene.books.loads["m1"] == 2

    assert play(steps).books.most <= BUDGET


def test_nobody_is_promised_what_a_model_on_its_way_out_may_come_to_hold(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        tasks = await leaving(scene, "m2", work_edges=30_000)
        there = scene.owner.cluster.residents[0]
        assert there["m2"].held_mb >= SIZE + 300
        await asyncio.gather(*tasks)
        assert there["m2"].held_mb == SIZE

    assert play(steps).books.most <= BUDGET


def test_two_models_whose_structures_do_not_fit_beside_each_other_come_all_the_same(play: Callable[..., Scene]) -> None:
    """A model and its dispersion correction, which evaluate the same structure: each makes its passes as small as it must."""

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0", "m1", work=1.3, edges=60_000)  # in which uses are told twice
        assert set(scene.books.there) == {"m0", "m1"}

    assert play(steps).owner.tally.evictions == {}


def test_beside_what_is_pinned_a_model_stays_for_its_own_large_structure(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        await scene.use(one, "m1")
        await scene.use(one, "m1", edges=10**6)
        assert scene.owner.estimate("m1", 10**6) == BUDGET - SIZE

    policy = Policy(margin_mb=0, models_per_device=16, pinned=frozenset({"m0"}))
    assert play(steps, policy=policy).owner.tally.evictions == {}
