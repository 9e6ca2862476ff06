"""Applies a profile to a running service: what is new is loaded before what is old goes, where there is room for both.

No request is lost: a model that leaves finishes its work first, and who asks for it meanwhile waits as for any model that is not
loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

import numpy as np

from forcegate.errors import NoRoom
from frontend.scheduler import eviction
from frontend.scheduler.life import Life
from frontend.scheduler.owner import IN_USE_SECONDS, Owner
from frontend.scheduler.policy import Policy

log = logging.getLogger(__name__)

REASON: Final = "profile"


async def apply(owner: Owner, policy: Policy, wanted: Sequence[str]) -> None:
    """From now on ``policy`` holds; when this returns, the models ``wanted`` are resident, with their replicas as far as there is
    room, and beside them those that are pinned or in use.

    Without ``wanted`` the rules change and nothing is unloaded but what they forbid.

    Args:
        wanted: in the order of their loads.

    Raises:
        NoRoom: one of them has no place even when everything else has gone. Those before it stay.
        ForcegateError: its load failed.
    """
    owner.govern(policy)
    log.info("profile", extra={"models": list(wanted)})
    for model in wanted:
        await _leave(owner, [life for life in _misplaced(owner) if life.model == model])
        await _bring(owner, model, wanted)
    for model in wanted:
        await owner.scaled(model)
    kept = {*wanted, *policy.pinned, *_in_use(owner)} if wanted else set(owner.lives)
    await _leave(owner, [life for life in _resident(owner) if life.model not in kept] + _misplaced(owner))


async def _bring(owner: Owner, model: str, wanted: Sequence[str]) -> None:
    """Loads a model beside the others; where there is no room for that, in the place of some that are not wanted."""
    life = owner.life(model)
    await owner.departure(life)  # it may just be making room for another one
    life.residency.retry_at = float("-inf")  # a person may have put right why its last load failed
    try:
        await owner.bring(model)
    except NoRoom as error:
        if (found := _in_the_way(owner, model, wanted)) is None:
            raise NoRoom(
                f"{model} has no place under this profile: {error.detail}", "`forcegate placement plan` shows it."
            ) from None
        # Its place is taken in the same moment, so that nobody who asks for one that leaves can take it.
        owner.displace(model, *found)
        await owner.bring(model)


def _in_the_way(owner: Owner, model: str, wanted: Sequence[str]) -> tuple[int, tuple[str, ...]] | None:
    """The device, and what has to leave it, busy or not: where that was used the longest ago."""
    cluster, best = owner.cluster, None
    for at in map(int, np.flatnonzero(cluster.usable & cluster.allowed(model))):
        there = [r for r in cluster.residents[at].values() if r.loaded and r.model not in {*wanted, *owner.policy.pinned}]
        victims = eviction.enough(cluster, at, owner.estimate(model), sorted(there, key=lambda r: (r.last_used, r.model)))
        if victims:
            newest = max(cluster.residents[at][victim].last_used for victim in victims)
            best = min(best or (newest, at, victims), (newest, at, victims))
    return None if best is None else best[1:]


async def _leave(owner: Owner, lives: Sequence[Life]) -> None:
    for life in lives:
        owner.evict(life.model, REASON)
    await asyncio.gather(*(owner.departure(life) for life in lives))


def _in_use(owner: Owner) -> set[str]:
    """Those that somebody has used a moment ago, and would have loaded again at once."""
    now = owner.clock()
    return {name for there in owner.cluster.residents for name, each in there.items() if now - each.last_used < IN_USE_SECONDS}


def _resident(owner: Owner) -> list[Life]:
    return [life for life in owner.lives.values() if life.residency.state == "resident" and life.device]


def _misplaced(owner: Owner) -> list[Life]:
    """Those on a device that the policy has for others."""
    cluster = owner.cluster
    return [
        life
        for life in _resident(owner)
        if not all(cluster.allowed(life.model)[cluster.position[device]] for device in life.instances)
    ]
