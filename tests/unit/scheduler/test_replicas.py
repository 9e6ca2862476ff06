"""Instances of a model: what decides their number, and an owner that carries it out on a machine that keeps its books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forcegate.errors import GateFailed, ModelNotReady
from frontend.scheduler import replicas
from frontend.scheduler.application import apply
from frontend.scheduler.cluster import Cluster, Resident
from frontend.scheduler.device import Device
from frontend.scheduler.policy import Policy
from frontend.scheduler.replicas import Change, History, Seen
from frontend.supervisor.rates import HOLD_SECONDS, Rates
from frontend.triton.control import Answers
from tests.unit.scheduler.scene import BUDGET, REPLICAS, SIZE, Scene, becomes

POLICY = Policy(margin_mb=0, models_per_device=2, instances=3)
LOADED = Seen(wait=10.0, busy=1.0)
looks = st.lists(
    st.tuples(st.floats(0.0, 30.0), st.builds(Seen, st.sampled_from([0.0, 0.4, 1.0, 5.0]), st.sampled_from([0.0, 0.4, 0.9, 2.0]))),
    max_size=40,
)


def cluster(*homes: tuple[int, int, int], policy: Policy = POLICY, devices: int = 2, mb: int = 1000) -> Cluster:
    """Model "m" with (position, instances, MB of each), on devices of 1,000 MB."""
    made = Cluster([Device(f"gpu-{n}", n, "gpu", "a GPU", mb, 0) for n in range(devices)], policy)
    for at, slots, each in homes:
        made.put(Resident("m", slots * each, 0.0, slots=slots, loaded=True), at)
    return made


def remembered(sequence: list[tuple[float, Seen]], instances: int, policy: Policy = POLICY) -> tuple[History, float]:
    history, now = History(), 0.0
    for pause, seen in sequence:
        now += pause
        history = replicas.remember(history, seen, instances, policy, now)
    return history, now


@given(looks, st.integers(1, 4), st.integers(50, 1500), st.booleans())
def test_whatever_is_seen_the_memory_is_there_and_the_bounds_hold(
    sequence: list[tuple[float, Seen]], count: int, mb: int, grow: bool
) -> None:
    there = cluster((0, count, 200))
    history, now = remembered(sequence, count)
    before = repr(there.residents)
    change = replicas.decide("m", mb, history, there, now, grow)
    assert repr(there.residents) == before, "it changes nothing"
    if change.action == "out":
        assert grow
        assert count < POLICY.instances
        assert mb <= there.room_at(change.at)
        assert change.at == 1, "another device is better than the same one"
    if change.action == "in":
        assert count > 1
        assert change.at == 0
    assert not (history.over_since is not None and history.calm_since is not None), "never too many and too few at once"


@given(looks)
def test_a_queue_that_is_short_once_begins_anew(sequence: list[tuple[float, Seen]]) -> None:
    history, now = remembered([*sequence, (0.0, Seen(wait=POLICY.replica_wait_seconds))], 1)
    for wait in (0.0, 1.01 * POLICY.replica_sustained_seconds):
        history = replicas.remember(history, LOADED, 1, POLICY, now + wait)
        change = replicas.decide("m", 100, history, cluster((0, 1, 200)), now + wait)
        assert change.action == ("out" if wait else "none")


def test_one_goes_only_when_the_others_would_not_be_busy() -> None:
    there, later = cluster((0, 2, 200), (1, 1, 200)), POLICY.replica_idle_seconds
    for seen, goes in ((Seen(0.0, 0.9), True), (Seen(0.0, 1.1), False), (Seen(0.6, 0.0), False), (Seen(0.4, 0.0), True)):
        history, now = remembered([(0.0, seen), (later, seen)], 3)
        expected = Change("in", 0, "idle") if goes else Change()
        assert replicas.decide("m", 200, history, there, now) == expected, seen


def test_the_last_one_is_not_taken_away_however_idle() -> None:
    history, now = remembered([(0.0, Seen()), (1e6, Seen())], 1)
    assert replicas.decide("m", 200, history, cluster((0, 1, 200)), now) == Change()


def test_another_device_goes_first_and_the_same_one_when_others_are_full() -> None:
    history, now = remembered([(0.0, LOADED), (60.0, LOADED)], 1)
    there = cluster((0, 1, 300))
    assert replicas.decide("m", 300, history, there, now) == Change("out", 1, "queue")
    there.put(Resident("other", 800, 0.0, loaded=True, last_used=now), 1)
    assert replicas.decide("m", 300, history, there, now) == Change("out", 0, "queue")
    there.put(Resident("another", 500, 0.0, loaded=True), 0)
    assert replicas.decide("m", 300, history, there, now) == Change(), "nothing is unloaded for it"


def test_what_nobody_uses_makes_way_on_another_device_and_nothing_else() -> None:
    history, now = remembered([(0.0, LOADED), (60.0, LOADED)], 1)

    def change(**resident: Any) -> Change:
        there = cluster((0, 1, 300), policy=replace(POLICY, pinned=frozenset({"pinned"})))
        there.put(Resident("full", 700, 0.0, loaded=True, last_used=now), 0)
        there.put(Resident(**{"model": "other", "base_mb": 800, "since": 0.0, "loaded": True, "last_used": now - 15} | resident), 1)
        return replicas.decide("m", 300, history, there, now)

    assert change() == Change("out", 1, "queue", ("other",))
    assert change(last_used=now - 5) == Change(), "it is used"
    assert change(load_seconds=20.0) == Change(), "its place was not of no use for as long as its load takes"
    assert change(model="pinned") == Change()
    assert change(slots=2) == Change(), "its instances go by themselves"
    assert change(leaving=True, loaded=False) == Change(), "it goes already"
    there = cluster((0, 1, 300))
    there.put(Resident("other", 800, 0.0, leaving=True), 1)
    assert replicas.decide("m", 300, history, there, now) == Change(), "there will be room on another device in a moment"


def test_a_profile_asks_for_devices_apart_and_a_load_for_any() -> None:
    policy = replace(POLICY, instances=1, least={"m": 2})
    there = cluster((0, 1, 300), policy=policy, devices=1)
    assert replicas.decide("m", 300, History(), there, 0.0) == Change(), "two on one device are not what it says"
    there = cluster((0, 1, 300), policy=policy)
    assert replicas.decide("m", 300, History(), there, 0.0) == Change("out", 1, "profile")
    there = cluster((0, 1, 300), (1, 1, 300), policy=policy)
    idle, now = remembered([(0.0, Seen()), (1e6, Seen())], 2)
    assert replicas.decide("m", 300, idle, there, now) == Change(), "it keeps them however idle"
    there.govern(replace(policy, least={}))
    assert replicas.decide("m", 300, History(), there, 0.0).action == "in"


def test_what_is_spare_is_beyond_what_a_profile_asks_for_and_least_recently_used() -> None:
    there = cluster((0, 2, 200), policy=replace(POLICY, least={"m": 2}))
    everywhere = np.ones(2, dtype=bool)
    assert replicas.spare(there, everywhere) is None
    there.put(Resident("n", 300, 0.0, slots=2, loaded=True, last_used=5.0), 1)
    assert replicas.spare(there, everywhere) == ("n", 1)
    there.govern(POLICY)
    assert replicas.spare(there, everywhere) == ("m", 0)
    assert replicas.spare(there, np.array([False, True])) == ("n", 1)


def test_memory_of_an_instance_is_spoken_for_and_given_back() -> None:
    there = cluster((0, 1, 300))
    there.more("m", 0, 310, 1.0)
    there.more("m", 1, 310, 1.0)
    assert (there.held[0], there.held[1], there.homes("m")[0].slots) == (610, 310, 2)
    there.fewer("m", 0)
    there.fewer("m", 1)
    assert (there.held[0], there.held[1], set(there.homes("m"))) == (305, 0, {0})


def test_waits_and_work_are_what_changed_between_two_looks() -> None:
    rates = Rates()
    assert rates.look({"m": Answers(10, 0, 10**9, 10**9)}, 0.0) == {}
    assert rates.look({"m": Answers(14, 0, 3 * 10**9, 3 * 10**9)}, 2.0) == {"m": Seen(0.5, 1.0)}
    assert rates.look({"m": Answers(14, 0, 3 * 10**9, 3 * 10**9)}, 3.0) == {"m": Seen(0.5, 0.0)}, "a pass takes its time"
    later = 3.0 + HOLD_SECONDS
    assert rates.look({"m": Answers(14, 0, 3 * 10**9, 3 * 10**9)}, later) == {"m": Seen()}
    assert rates.look({"m": Answers(1, 0, 10**6, 10**6)}, later + 1) == {}, "it has been loaded again"


POLICY_OF_SCENE = replace(REPLICAS, replica_idle_seconds=0.5)


def loaded(then: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
    """Steps that begin with two instances of m0, which a gateway's queue has asked for."""

    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        waiting = {"m0": 30.0}
        one.waiting = lambda: waiting
        work = asyncio.create_task(scene.use(one, "m0", work=2.0))
        await becomes(lambda: scene.owner.life("m0").instances == {"cpu": 2})
        waiting.clear()
        await then(scene)
        await work

    return steps


def test_a_queue_brings_another_instance_and_idleness_takes_it_away(play: Callable[..., Scene]) -> None:
    async def then(scene: Scene) -> None:
        life, cluster = scene.owner.life("m0"), scene.owner.cluster
        await becomes(lambda: not life.scaling)
        assert (life.memory_mb, cluster.held[0], cluster.homes("m0")[0].slots) == (2 * SIZE, 2 * SIZE, 2)
        assert scene.owner._footprints.base_mb("m0", "cpu") == SIZE, "of one"
        await becomes(lambda: life.instances == {"cpu": 1} and not life.scaling)
        scene.owner.tick()
        assert (life.memory_mb, cluster.held[0]) == (SIZE, SIZE)

    scene = play(loaded(then), policy=POLICY_OF_SCENE)
    counts = {name: count for name, count in scene.owner.tally.scalings.items() if count}
    assert counts == {"out queue": 1, "in idle": 1}
    assert scene.books.most <= BUDGET
    assert scene.owner.tally.evictions == {}


def test_an_instance_goes_before_any_model_when_somebody_needs_its_memory(play: Callable[..., Scene]) -> None:
    async def then(scene: Scene) -> None:
        other = (await scene.follower())[0]
        await scene.use(other, "m1")
        await scene.use(other, "m2")
        assert set(scene.books.there) == {"m0", "m1", "m2"}
        assert scene.owner.life("m0").instances == {"cpu": 1}

    scene = play(loaded(then), policy=replace(POLICY_OF_SCENE, replica_idle_seconds=60.0))
    assert scene.owner.tally.scalings["in room"] == 1
    assert scene.owner.tally.evictions == {}
    assert scene.books.most <= BUDGET


def test_an_instance_that_cannot_be_taken_away_keeps_nobody_waiting(play: Callable[..., Scene]) -> None:
    async def then(scene: Scene) -> None:
        other = (await scene.follower())[0]
        await scene.use(other, "m1")
        scene.books.clinging.add("m0")
        await scene.use(other, "m2")

    scene = play(loaded(then), policy=replace(POLICY_OF_SCENE, replica_idle_seconds=60.0))
    assert scene.owner.tally.scalings["in failed"] == 1, "it is not tried again and again"


def test_a_model_with_two_instances_leaves_whole_and_comes_back_as_one(play: Callable[..., Scene]) -> None:
    async def then(scene: Scene) -> None:
        life = scene.owner.life("m0")
        scene.owner.evict("m0", "asked")
        await scene.owner.departure(life)
        assert (scene.books.there, life.instances, life.device) == ({}, {}, "")
        await scene.use((await scene.follower())[0], "m0")
        assert life.instances == {"cpu": 1}

    play(loaded(then), policy=replace(POLICY_OF_SCENE, replica_idle_seconds=60.0))


def test_a_model_one_of_whose_processes_died_is_accounted_as_the_one_that_comes_back(play: Callable[..., Scene]) -> None:
    async def then(scene: Scene) -> None:
        scene.owner.alone("m0")
        assert scene.owner.life("m0").instances == {"cpu": 1}
        assert (scene.owner.cluster.held[0], scene.owner.cluster.homes("m0")[0].slots) == (SIZE, 1)
        scene.owner.alone("m5")  # one that is not there

    play(loaded(then), policy=replace(POLICY_OF_SCENE, replica_idle_seconds=60.0))


@pytest.mark.parametrize("error", [GateFailed("No."), ModelNotReady("Not now.")])
def test_one_that_cannot_be_started_leaves_the_others_and_is_tried_later(
    play: Callable[..., Scene], error: GateFailed | ModelNotReady
) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        scene.books.failing["m0"] = error
        one.waiting = lambda: {"m0": 30.0}
        work = asyncio.create_task(scene.use(one, "m0", work=4.0))
        await becomes(lambda: scene.owner.tally.scalings["out failed"] == 1)
        life = scene.owner.life("m0")
        await becomes(lambda: not life.scaling)
        assert (life.instances, life.state, scene.owner.cluster.held[0]) == ({"cpu": 1}, "resident", SIZE)
        await asyncio.sleep(1.2)
        assert scene.owner.tally.scalings["out failed"] == 1, "not while it pauses"
        scene.books.failing.clear()
        life.grow_at = 0.0
        await becomes(lambda: life.instances == {"cpu": 2})
        await work

    scene = play(steps, policy=POLICY_OF_SCENE)
    assert sum(scene.owner.tally.faults.values()) == error.retryable


def test_nothing_is_added_while_the_model_is_brought_back(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        one = (await scene.follower())[0]
        await scene.use(one, "m0")
        scene.books.unsteady.add("m0")
        one.waiting = lambda: {"m0": 30.0}
        work = asyncio.create_task(scene.use(one, "m0", work=2.5))
        await asyncio.sleep(1.5)
        assert scene.owner.life("m0").instances == {"cpu": 1}
        scene.books.unsteady.clear()
        await becomes(lambda: scene.owner.life("m0").instances == {"cpu": 2})
        await work

    play(steps, policy=POLICY_OF_SCENE)


def test_a_profile_puts_its_replicas_on_devices_and_a_drained_one_is_left_to_the_other(play: Callable[..., Scene]) -> None:
    async def steps(scene: Scene) -> None:
        policy = Policy(margin_mb=0, models_per_device=2, least={"m0": 2})
        await asyncio.wait_for(apply(scene.owner, policy, ["m0", "m1"]), 10)
        life = scene.owner.life("m0")
        assert life.instances == {"gpu-0": 1, "gpu-1": 1}
        assert scene.books.placed["m0"] == {"gpu-0": 1, "gpu-1": 1}
        assert sorted(life.held.values()) == [SIZE, SIZE]
        first = life.device
        scene.owner.ward.of(first).drain()
        scene.owner.empty(first, "drain")
        await becomes(lambda: len(life.instances) == 1 and not life.scaling)
        assert life.device != first
        assert life.instances == scene.books.placed["m0"] == {life.device: 1}
        assert life.state == "resident"
        scene.owner.ward.of(first).give_back()
        await becomes(lambda: len(life.instances) == 2)

    scene = play(steps, two=True)
    assert scene.owner.tally.scalings["out profile"] == 2
    assert scene.owner.tally.scalings["in drain"] == 1
