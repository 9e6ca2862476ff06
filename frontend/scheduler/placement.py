"""Where a piece of work goes: a pure function of the demand, what is where, and the policy.

In this order: a device that has the model and room for the work (affinity 100); one with room for the model (50); one that has room
after an eviction (0). Within each, the better balanced one (0 to 100, cluster.py), and between equals the first by the device's own
order: the same cluster gives the same answer however it was listed. Affinity decides before balance, because a load costs seconds
and a busy neighbour milliseconds; a model that needs more than one device gets instances when its work waits (replicas.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from frontend.scheduler import eviction
from frontend.scheduler.cluster import Cluster, Resident
from frontend.scheduler.device import Device
from frontend.scheduler.policy import Policy

Action = Literal["use", "load", "evict", "wait", "refuse"]
AFFINITY = {"use": 100.0, "load": 50.0, "evict": 0.0}


@dataclass(frozen=True, slots=True)
class Demand:
    """A piece of work that looks for a device.

    Attributes:
        base_mb: what the model holds while it computes nothing.
        work_mb: what this piece of work takes on top, at its peak.
        replica: it may load the model on a further device, although it is on one already.
        excluded: devices that it shall not go to, since it has failed there.
        keep: models that must not be evicted for it: others wait for them.
    """

    model: str
    base_mb: int
    work_mb: int = 0
    replica: bool = False
    excluded: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()

    @property
    def need_mb(self) -> int:
        """MB where the model is not there yet."""
        return self.base_mb + self.work_mb


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a demand, and why.

    Attributes:
        at: position of the device in the cluster, -1 for none; ``device`` is its id.
        evictions: models to unload there first.
        score: affinity and balance.
        reasons: sentences for people and logs.
        largest_mb: with ``refuse``, the most that this model's work could have on any device.
    """

    action: Action
    at: int = -1
    device: str = ""
    evictions: tuple[str, ...] = ()
    score: float = 0.0
    reasons: tuple[str, ...] = ()
    largest_mb: int = 0


def decide(demand: Demand, cluster: Cluster, now: float) -> Decision:
    """What to do with ``demand``; changes nothing."""
    homes = cluster.homes(demand.model)
    if homes:
        decision, blocked = _use(demand, cluster, homes, now)
        if decision is not None:
            return decision
        # Where the model is can take the work later, so that another copy is a waste unless it was asked for.
        if blocked and not demand.replica:
            return Decision("wait", reasons=tuple(blocked))
    open_to = cluster.usable & cluster.allowed(demand.model)
    for device in demand.excluded:
        if device in cluster.position:
            open_to[cluster.position[device]] = False
    for at in homes:
        open_to[at] = False
    return _load(demand, cluster, open_to, now) or _evict(demand, cluster, open_to, now) or _neither(demand, cluster, open_to)


def place(
    demand: Demand, inventory: Iterable[Device], residents: Iterable[tuple[str, Resident]], policy: Policy, now: float
) -> Decision:
    """The same from plain values: the inventory, and what lives on which device (by id)."""
    cluster = Cluster(inventory, policy)
    for device, resident in residents:
        cluster.put(resident, cluster.position[device])
    return decide(demand, cluster, now)


def _use(demand: Demand, cluster: Cluster, homes: Mapping[int, Resident], now: float) -> tuple[Decision | None, list[str]]:
    """A device that has the model; or why each that will take the work later does not take it now."""
    best, best_score, blocked = -1, -1.0, []
    # A device may have been reserved for others since the model came to it.
    open_to = cluster.usable & cluster.allowed(demand.model)
    for at, resident in sorted(homes.items()):
        device = cluster.devices[at].id
        if not open_to[at] or device in demand.excluded or resident.leaving:
            continue
        if not resident.loaded:
            blocked.append(f"{device}: the model is being loaded there.")
        elif resident.in_flight >= resident.slots:
            blocked.append(f"{device}: all {resident.slots} instances are busy.")
        elif (room := cluster.room_at(at)) < demand.work_mb:
            if cluster.limit_at(at) - resident.base_mb >= demand.work_mb:
                blocked.append(f"{device}: the work needs {demand.work_mb} MB, and {max(room, 0):.0f} MB are free.")
        elif (score := AFFINITY["use"] + cluster.balance_at(at, now, demand.work_mb)) > best_score:
            best, best_score = at, score
    if best < 0:
        return None, blocked
    reason = f"the model is there, and {cluster.room_at(best):.0f} MB are free for {demand.work_mb} MB"
    return Decision("use", best, cluster.devices[best].id, score=best_score, reasons=(reason,)), blocked


def _load(demand: Demand, cluster: Cluster, open_to: np.ndarray, now: float) -> Decision | None:
    room = cluster.room()
    fits = open_to & (cluster.count < cluster.policy.models_per_device) & (room >= demand.need_mb)
    if not fits.any():
        return None
    scores = np.where(fits, cluster.balance(now, demand.need_mb), -1.0)
    at = int(scores.argmax())
    reason = f"there is room: {room[at]:.0f} MB free beyond the margin, and {demand.need_mb} MB needed"
    others = f"the best balanced of {np.count_nonzero(fits)} devices with room"
    return Decision("load", at, cluster.devices[at].id, score=AFFINITY["load"] + float(scores[at]), reasons=(reason, others))


def _evict(demand: Demand, cluster: Cluster, open_to: np.ndarray, now: float) -> Decision | None:
    chosen = eviction.choose(cluster, open_to, demand.need_mb, demand.keep, now)
    if chosen is None:
        return None
    at, victims = chosen
    score = AFFINITY["evict"] + cluster.balance_at(at, now, demand.need_mb)
    reasons = tuple(f"{victim} has not been used for {now - cluster.residents[at][victim].last_used:.0f} s" for victim in victims)
    return Decision("evict", at, cluster.devices[at].id, victims, score, reasons)


def _neither(demand: Demand, cluster: Cluster, open_to: np.ndarray) -> Decision:
    """Whether waiting helps: on some device there is enough for it once everything that may be evicted is gone."""
    allowed = cluster.allowed(demand.model)
    largest = cluster.most_mb(demand.model)
    if largest < demand.need_mb:
        spare = int(max(largest - demand.base_mb, 0))
        return Decision(
            "refuse",
            reasons=(f"it needs {demand.need_mb} MB, and no device can ever give it more than {largest:.0f} MB",),
            largest_mb=spare,
        )
    faulty = [f"{cluster.devices[at].id}: {cluster.fault(at)}" for at in np.flatnonzero(allowed & ~cluster.usable)[:3]]
    full = f"{np.count_nonzero(open_to)} devices are full, and nothing on them may be evicted now"
    return Decision("wait", reasons=(full, *faulty))
