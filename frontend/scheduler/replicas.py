"""How many instances a model should have: a pure function of what was seen of it, of the policy, and of what is where.

Another one is worth its memory when work has waited for longer than a limit for some time. It gets memory that is free, or that of
models that nobody uses; what is in use is left alone. It goes again when for minutes hardly anything has waited and those that
remain would be half idle, so that they do not fall behind as soon as it has gone; or when somebody needs its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from frontend.scheduler import eviction
from frontend.scheduler.cluster import Cluster, Resident
from frontend.scheduler.policy import Policy

CALM: Final = 0.25
"""Part of the limit up to which a wait counts as none."""
SPARE: Final = 0.5
"""How busy those that remain may be for one to go."""
UNUSED_SECONDS: Final = 10.0
"""A model makes way for another one's instance when nobody has used it for so long, and for as long as its own load took: so its
place has been of no use for longer than it costs to load it again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a model.

    Attributes:
        wait: s that work waits before an instance begins with it.
        busy: instances that compute, on average.
    """

    wait: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class History:
    """Since when work has waited for too long without a break, and since when there has been an instance too many."""

    over_since: float | None = None
    calm_since: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What to do with the instances of a model.

    Attributes:
        action: one more (``out``), one less (``in``), or neither.
        at: position of the device.
        reason: ``queue`` or ``profile`` for one more, ``idle`` or ``profile`` for one less.
        unused: with ``out``, models that have to leave the device first.
    """

    action: Literal["none", "out", "in"] = "none"
    at: int = -1
    reason: str = ""
    unused: tuple[str, ...] = ()


def remember(history: History, seen: Seen, instances: int, policy: Policy, now: float) -> History:
    """The history with one more look."""
    over = seen.wait > policy.replica_wait_seconds
    calm = seen.wait <= CALM * policy.replica_wait_seconds and seen.busy <= SPARE * (instances - 1)
    return History(_since(history.over_since, over, now), _since(history.calm_since, calm, now))


def _since(before: float | None, still: bool, now: float) -> float | None:
    if not still:
        return None
    return now if before is None else min(before, now)


def decide(model: str, base_mb: int, history: History, cluster: Cluster, now: float, may_grow: bool = True) -> Change:
    """What to do with a model's instances; changes nothing.

    Args:
        base_mb: what one more would hold.
        may_grow: whether there is memory to give away: nobody waits for a model that is not loaded.
    """
    policy, homes = cluster.policy, cluster.homes(model)
    if not homes or not all(home.loaded and not home.leaving for home in homes.values()):
        return Change()
    count = total(homes)
    least = policy.least.get(model, 1)
    most = max(policy.instances, least)
    if count > most:
        return Change("in", fullest(cluster, homes), "profile")
    if count < least and may_grow and (at := room(cluster, model, base_mb, apart=True)) is not None:
        return Change("out", at, "profile")
    waited = history.over_since is not None and now - history.over_since >= policy.replica_sustained_seconds
    if waited and count < most and may_grow:
        if (at := room(cluster, model, base_mb, apart=True)) is not None:
            return Change("out", at, "queue")
        if any(r.leaving for at, each in enumerate(cluster.residents) if at not in homes for r in each.values()):
            return Change()  # what they give back is seen first
        if (found := unused(cluster, model, base_mb, now)) is not None:
            return Change("out", found[0], "queue", found[1])
        if (at := room(cluster, model, base_mb, apart=False)) is not None:
            return Change("out", at, "queue")
    calm = history.calm_since is not None and now - history.calm_since >= policy.replica_idle_seconds
    if calm and count > least:
        return Change("in", fullest(cluster, homes), "idle")
    return Change()


def total(homes: Mapping[int, Resident]) -> int:
    """The instances of a model on all its devices."""
    return sum(home.slots for home in homes.values())


def room(cluster: Cluster, model: str, base_mb: int, apart: bool) -> int | None:
    """The device for one more instance, None where there is no room: the best balanced of those that the model is not on, else of
    those that it is on.

    Args:
        apart: whether it has to be a device that the model is not on.
    """
    policy, homes = cluster.policy, cluster.homes(model)
    fits = cluster.usable & cluster.allowed(model) & (cluster.room() >= base_mb)
    here = np.zeros(len(cluster.devices), dtype=bool)
    here[list(homes)] = True
    elsewhere = fits & ~here & (cluster.count < policy.models_per_device)
    choice = elsewhere if elsewhere.any() or apart else fits & here
    if not choice.any():
        return None
    # How long it has been idle does not matter here, so that no time is asked for.
    return int(np.where(choice, cluster.balance(0.0, base_mb), -1.0).argmax())


def unused(cluster: Cluster, model: str, base_mb: int, now: float) -> tuple[int, tuple[str, ...]] | None:
    """Another device, and models on it that nobody uses and without which there is room for one more instance; None where there is
    none."""
    there = [resident for each in cluster.residents for resident in each.values()]
    open_to = cluster.usable & cluster.allowed(model)
    open_to[list(cluster.homes(model))] = False
    # One that has several instances has them since it is used, and gives them up by itself.
    keep = frozenset(
        resident.model
        for resident in there
        if now - resident.last_used < max(UNUSED_SECONDS, resident.load_seconds) or total(cluster.homes(resident.model)) > 1
    )
    return eviction.choose(cluster, open_to, base_mb, keep, now)


def fullest(cluster: Cluster, homes: Mapping[int, Resident]) -> int:
    """The device that gives an instance up: where the most are, and of those the one with the least room."""
    return min(homes, key=lambda at: (-homes[at].slots, cluster.room_at(at), at))


def spare(cluster: Cluster, open_to: np.ndarray, unable: frozenset[str] = frozenset()) -> tuple[str, int] | None:
    """The model, and the device, of an instance beyond what the policy asks for, where memory is needed on one of ``open_to``: that
    of the least recently used model. None where there is none."""
    found: list[tuple[float, str, int]] = []
    for at in map(int, np.flatnonzero(open_to & (cluster.count > 0))):
        for resident in cluster.residents[at].values():
            homes = cluster.homes(resident.model)
            settled = all(home.loaded and not home.leaving for home in homes.values())
            if settled and resident.model not in unable and total(homes) > cluster.policy.least.get(resident.model, 1):
                found.append((resident.last_used, resident.model, at))
    return min(found)[1:] if found else None
