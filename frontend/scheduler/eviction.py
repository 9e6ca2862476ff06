"""Which models make room: the least recently used that are idle, not pinned, and have been there for long enough."""

from __future__ import annotations

import numpy as np

from frontend.scheduler.cluster import Cluster, Resident

LOOKED_AT = 8
"""Devices that are compared, of those whose residents were used the longest ago."""


def choose(
    cluster: Cluster, open_to: np.ndarray, need_mb: float, keep: frozenset[str], now: float
) -> tuple[int, tuple[str, ...]] | None:
    """The device, and its models to unload, so that ``need_mb`` and one more model have room; None where there is none.

    Of the devices that will do, the one whose most recently used victim was used the longest ago.

    Args:
        open_to: devices that come into question.
        keep: models that have to stay.
    """
    policy = cluster.policy
    # What a device could give at most; whether it may is decided for each resident below.
    reach = (cluster.room() + cluster.evictable >= need_mb) & (cluster.count - cluster.evictable_count < policy.models_per_device)
    candidates = np.flatnonzero(open_to & reach & (cluster.evictable_count > 0))
    best: tuple[float, int, tuple[str, ...]] | None = None
    found = 0
    for at in candidates[np.argsort(cluster.longest_unused[candidates], kind="stable")]:
        if best is not None and (found >= LOOKED_AT or cluster.longest_unused[at] >= best[0]):
            break
        victims = _victims(cluster, int(at), need_mb, keep, now)
        if victims:
            found += 1
            newest = max(cluster.residents[at][victim].last_used for victim in victims)
            if best is None or newest < best[0]:
                best = newest, int(at), victims
    return None if best is None else (best[1], best[2])


def _victims(cluster: Cluster, at: int, need_mb: float, keep: frozenset[str], now: float) -> tuple[str, ...]:
    """The fewest, least recently used models of one device that make enough room; none where they cannot."""
    may_go = [r for r in cluster.residents[at].values() if r.model not in keep and r.can_go(cluster.policy, now)]
    return enough(cluster, at, need_mb, sorted(may_go, key=lambda r: (r.last_used, r.model)))


def enough(cluster: Cluster, at: int, need_mb: float, candidates: list[Resident]) -> tuple[str, ...]:
    """As few of the candidates as make room on a device, the first ones before the others; none where all are too little."""
    # What the driver measures beyond what we gave away is not ours to free.
    room, count = cluster.room_at(at), int(cluster.count[at])
    single = next((r for r in candidates if room + r.base_mb >= need_mb and count - 1 < cluster.policy.models_per_device), None)
    if single is not None:
        return (single.model,)
    chosen: list[str] = []
    for resident in candidates:
        chosen.append(resident.model)
        room, count = room + resident.base_mb, count - 1
        if room >= need_mb and count < cluster.policy.models_per_device:
            return tuple(chosen)
    return ()


def expired(cluster: Cluster, now: float) -> list[tuple[int, str]]:
    """Models that nobody has asked for in ``idle_seconds``, with the position of their device."""
    return [
        (int(at), resident.model)
        for at in np.flatnonzero(cluster.longest_unused <= now - cluster.policy.idle_seconds)
        for resident in cluster.residents[at].values()
        if resident.can_go(cluster.policy, now) and now - resident.last_used >= cluster.policy.idle_seconds
    ]
