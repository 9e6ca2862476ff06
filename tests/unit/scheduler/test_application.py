"""A profile applied to a running service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from forcegate.errors import NoRoom
from frontend.scheduler import application
from frontend.scheduler.application import apply
from frontend.scheduler.device import Device
from frontend.scheduler.policy import Policy
from tests.unit.scheduler.scene import BUDGET, NAMES, Scene


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
