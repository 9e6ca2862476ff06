"""What is where: devices and the models that live on them, in columns, so that a decision over 1,000 devices is a few array
operations.

Placement (placement.py, eviction.py) only reads it. What changes it are readings of the inventory and the steps of loads, work and
unloads, each a method here. Memory is counted twice, by what the scheduler has given away and by what the driver measures, and the
larger of the two counts: other programs use the device too, and a model that is being loaded has not taken its memory yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from frontend.scheduler.device import Device
from frontend.scheduler.policy import Policy

COOL, HOT = 30.0, 90.0
"""Degrees Celsius between which a device's temperature counts against it."""
REST_SECONDS = 60.0
"""A device that has computed nothing for so long is as idle as can be."""


@dataclass(slots=True)
class Resident:
    """A model on a device.

    Attributes:
        base_mb: what it holds while it computes nothing, all its instances here together.
        work_mb: what its work in flight holds on top.
        slots: pieces of work that it takes at once (its instances here).
        loaded: whether it answers; before that its memory is spoken for already.
        leaving: it gets no new work, so that it can be evicted.
    """

    model: str
    base_mb: int
    since: float
    load_seconds: float = 0.0
    slots: int = 1
    loaded: bool = False
    leaving: bool = False
    in_flight: int = 0
    work_mb: int = 0
    last_used: float = 0.0

    @property
    def held_mb(self) -> int:
        """MB that it may hold now."""
        return self.base_mb + self.work_mb

    def can_go(self, policy: Policy, now: float) -> bool:
        """Whether it may be evicted now: idle, not pinned, and on the device for long enough that its load was worth it."""
        stays = self.in_flight or self.model in policy.pinned or not self.loaded
        return not stays and now - self.since >= policy.hold * self.load_seconds


class Cluster:
    """Devices with their residents. The order of ``devices`` has no influence on any decision.

    Args:
        devices: the inventory.
    """

    def __init__(self, devices: Iterable[Device], policy: Policy) -> None:
        self.policy = policy
        self.devices = sorted(devices, key=lambda device: device.order)
        self.position = {device.id: at for at, device in enumerate(self.devices)}
        size = len(self.devices)
        self.residents: list[dict[str, Resident]] = [{} for _ in range(size)]
        self._homes: dict[str, dict[int, Resident]] = {}
        self._masks: dict[str, np.ndarray] = {}
        self.barred: dict[int, str] = {}
        self.total = np.zeros(size)
        self.measured = np.zeros(size)
        self.utilization = np.zeros(size)
        self.temperature = np.zeros(size)
        self.usable = np.zeros(size, dtype=bool)
        self.held = np.zeros(size)
        self.count = np.zeros(size, dtype=np.int64)
        self.busy = np.zeros(size, dtype=np.int64)
        self.idle_since = np.full(size, -math.inf)
        self.evictable = np.zeros(size)
        self.evictable_count = np.zeros(size, dtype=np.int64)
        self.longest_unused = np.full(size, math.inf)
        for device in self.devices:
            self.read(device)

    def govern(self, policy: Policy) -> None:
        """Another policy."""
        self.policy, self._masks = policy, {}
        for at in range(len(self.devices)):
            self._recount(at)

    def read(self, device: Device) -> None:
        """Takes a new reading of a device that is in the cluster."""
        at = self.position[device.id]
        self.devices[at] = device
        self.total[at], self.measured[at] = device.memory_total_mb, device.memory_used_mb
        self.utilization[at] = device.utilization or 0.0
        self.temperature[at] = COOL if device.temperature is None else device.temperature
        self.usable[at] = not device.fault and at not in self.barred

    def bar(self, device: str, why: str) -> None:
        """Nothing new goes to this device: drained or in quarantine. An empty ``why`` gives it back."""
        at = self.position[device]
        if why:
            self.barred[at] = why
        else:
            self.barred.pop(at, None)
        self.usable[at] = not self.devices[at].fault and at not in self.barred

    def fault(self, at: int) -> str:
        """Why a device cannot be used now; empty where it can."""
        return self.devices[at].fault or self.barred.get(at, "")

    def homes(self, model: str) -> Mapping[int, Resident]:
        """The devices that a model is on, or is being loaded on, by position."""
        return self._homes.get(model, {})

    def allowed(self, model: str) -> np.ndarray:
        """Which devices a model may use by the policy, whatever lives there."""
        if (mask := self._masks.get(model)) is None:
            named = self.policy.allowed.get(model)
            mask = np.array(
                [
                    (named is None or device.id in named) and model in self.policy.reserved.get(device.id, (model,))
                    for device in self.devices
                ],
                dtype=bool,
            )
            self._masks[model] = mask
        return mask

    @property
    def limit(self) -> np.ndarray:
        """MB of each device that may be given away in all."""
        return self.total - self.policy.margin_mb

    def limit_at(self, at: int) -> float:
        """The same for one device."""
        return float(self.total[at]) - self.policy.margin_mb

    def most_mb(self, model: str) -> float:
        """MB that a model could ever be given: the most that any device that it may use has beside what is pinned there.

        What other programs hold may come back, so that it does not count.
        """
        given = np.where(self.allowed(model), self.limit, 0.0)
        for other in self.policy.pinned - {model}:
            for at, resident in self.homes(other).items():
                given[at] -= resident.base_mb
        return float(given.max(initial=0.0))

    def room(self) -> np.ndarray:
        """MB that may still be given away on each device."""
        return self.limit - np.maximum(self.held, self.measured)

    def room_at(self, at: int) -> float:
        """The same for one device."""
        return self.limit_at(at) - float(max(self.held[at], self.measured[at]))

    def balance(self, now: float, need_mb: float) -> np.ndarray:
        """How well each device suits, from 0 to 100: free memory 40, utilization 30, temperature 20, time idle 10."""
        with np.errstate(invalid="ignore", divide="ignore"):
            memory = np.clip((self.room() - need_mb) / np.maximum(self.total, 1.0), 0.0, 1.0)
            idle = np.where(self.busy > 0, 0.0, np.clip((now - self.idle_since) / REST_SECONDS, 0.0, 1.0))
        cool = np.clip((HOT - self.temperature) / (HOT - COOL), 0.0, 1.0)
        return 40 * memory + 30 * (1 - np.clip(self.utilization, 0, 100) / 100) + 20 * cool + 10 * idle

    def balance_at(self, at: int, now: float, need_mb: float) -> float:
        """The same for one device."""
        memory = min(max((self.room_at(at) - need_mb) / max(float(self.total[at]), 1.0), 0.0), 1.0)
        idle = 0.0 if self.busy[at] else min(max((now - float(self.idle_since[at])) / REST_SECONDS, 0.0), 1.0)
        cool = min(max((HOT - float(self.temperature[at])) / (HOT - COOL), 0.0), 1.0)
        return 40 * memory + 30 * (1 - min(max(float(self.utilization[at]), 0.0), 100.0) / 100) + 20 * cool + 10 * idle

    # The steps of a model's life on a device.

    def load(self, model: str, at: int, base_mb: int, now: float, slots: int = 1, ready: bool = False) -> Resident:
        """A load begins, or ``ready`` says that the model is there already."""
        return self.put(Resident(model, base_mb, now, slots=slots, loaded=ready, last_used=now), at)

    def put(self, resident: Resident, at: int) -> Resident:
        """The model is on this device, in the state that ``resident`` says."""
        self.residents[at][resident.model] = resident
        self._homes.setdefault(resident.model, {})[at] = resident
        self._recount(at)
        return resident

    def loaded(self, model: str, at: int, now: float) -> None:
        """A load has ended well."""
        resident = self.residents[at][model]
        if not resident.loaded:
            resident.load_seconds, resident.since, resident.last_used = max(now - resident.since, 0.0), now, now
        resident.loaded = True
        self._recount(at)

    def expected(self, model: str, at: int, mb: int) -> None:
        """A load begins that is given so much."""
        self.residents[at][model].base_mb = mb
        self._recount(at)

    def measured_base(self, model: str, at: int, mb: int) -> None:
        """What the model holds was measured; one that is still being loaded has not taken all of it, and keeps its estimate."""
        resident = self.residents[at].get(model)
        if resident is not None and resident.loaded and mb and mb != resident.base_mb:
            resident.base_mb = mb
            self._recount(at)

    def more(self, model: str, at: int, base_mb: int, now: float) -> None:
        """One more instance of a model that is somewhere already is being loaded; its memory is spoken for."""
        resident = self.residents[at].get(model)
        if resident is None:
            self.put(Resident(model, base_mb, now, last_used=now), at)
            return
        resident.slots, resident.base_mb = resident.slots + 1, resident.base_mb + base_mb
        self._recount(at)

    def fewer(self, model: str, at: int) -> None:
        """One instance of a model is gone from a device, and the model with the last of them."""
        resident = self.residents[at].get(model)
        if resident is None:
            return
        if resident.slots == 1:
            self.remove(model, at)
            return
        resident.base_mb -= resident.base_mb // resident.slots
        resident.slots -= 1
        self._recount(at)

    def used(self, model: str, at: int, now: float) -> None:
        """Somebody has used the model a moment ago."""
        self.residents[at][model].last_used = now
        self._recount(at)
        if not self.busy[at]:
            self.idle_since[at] = now

    def start(self, model: str, at: int, work_mb: int, now: float) -> None:
        """Work begins."""
        resident = self.residents[at][model]
        resident.in_flight += 1
        resident.work_mb += work_mb
        resident.last_used = now
        self._recount(at)

    def finish(self, model: str, at: int, work_mb: int, now: float) -> None:
        """Work has ended, however."""
        resident = self.residents[at].get(model)
        if resident is None:  # the device was lost meanwhile
            return
        resident.in_flight -= 1
        resident.work_mb -= work_mb
        self.used(model, at, now)

    def depart(self, model: str, at: int) -> None:
        """The model is on its way out: what it holds is not free yet, and it makes no room for anybody else."""
        resident = self.residents[at][model]
        resident.leaving, resident.loaded = True, False
        self._recount(at)

    def remove(self, model: str, at: int) -> None:
        """The model is gone from this device."""
        if self.residents[at].pop(model, None) is None:
            return
        del self._homes[model][at]
        if not self._homes[model]:
            del self._homes[model]
        self._recount(at)

    def _recount(self, at: int) -> None:
        """Sums of one device anew, so that no error of a running sum can grow."""
        there = self.residents[at].values()
        self.held[at] = sum(resident.held_mb for resident in there)
        self.count[at] = len(there)
        self.busy[at] = sum(resident.in_flight for resident in there)
        idle = [r for r in there if r.loaded and not r.in_flight and r.model not in self.policy.pinned]
        self.evictable[at] = sum(resident.base_mb for resident in idle)
        self.evictable_count[at] = len(idle)
        self.longest_unused[at] = min((resident.last_used for resident in idle), default=math.inf)
