"""The instances of resident models: one more where work waits, one less where it is not needed (replicas.py decides).

An instance is added and taken away in place, by another instance_group: those that are there go on, and a request that one of them
evaluates is finished. So there is memory for one more, and never for a second copy of all.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np

from forcegate.errors import ForcegateError, ModelNotReady
from frontend.scheduler import replicas
from frontend.scheduler.carrier import GONE_SECONDS, LOOK_SECONDS, Carrier
from frontend.scheduler.life import Ask, Client, Life
from frontend.scheduler.replicas import History, Seen
from frontend.scheduler.residency import FIRST_PAUSE, LONGEST_PAUSE

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 3.0
"""Age up to which it counts what a gateway has told of its queue."""


class Scaler(Carrier):
    """See the module; ``Carrier`` has the arguments."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.asks: list[Ask] = []
        self._waits: dict[Client, tuple[float, Mapping[str, float]]] = {}
        self._uses: dict[Client, Mapping[str, float]] = {}
        self._seen: dict[str, Seen] = {}

    # What is seen of the load.

    def told(self, client: Client, uses: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """A client has so many uses of each model under way, and work that waits for so many seconds."""
        self._uses[client] = uses
        self._waits[client] = self.clock(), seconds

    def uses(self, model: str) -> int:
        """Requests and calls of tasks that are under way with a model, as far as clients have told."""
        return sum(int(uses.get(model, 0)) for uses in self._uses.values())

    def seen(self, model: str, seen: Seen) -> None:
        """How long requests have lately waited in Triton, those of gRPC users among them, and how busy the instances are."""
        self._seen[model] = seen

    def load_of(self, model: str) -> Seen:
        """How long new work waits: in the slowest gateway, then in Triton."""
        now, known = self.clock(), self._seen.get(model, Seen())
        waits = [seconds.get(model, 0.0) for told_at, seconds in self._waits.values() if now - told_at <= FRESH_SECONDS]
        return Seen(max(waits, default=0.0) + known.wait, known.busy)

    # What is decided.

    def rescale(self) -> None:
        """Looks at every model that is there, and begins what there is to do."""
        now = self.clock()
        for life in self.lives.values():
            if life.residency.state != "resident" or life.work is not None:
                continue
            count = sum(life.instances.values())
            life.history = replicas.remember(life.history, self.load_of(life.model), count, self.policy, now)
            self.consider(life)

    def consider(self, life: Life) -> bool:
        """Begins what there is to do with one model; whether there was anything."""
        if life.residency.state != "resident" or life.work is not None or not self._machine.steady(life.model):
            return False
        now = self.clock()
        may_grow = not self.asks and now >= life.grow_at
        change = replicas.decide(life.model, self.estimate(life.model, life.edges), life.history, self.cluster, now, may_grow)
        for unused in change.unused:  # when they are gone there is room, for this one or for whoever asks meanwhile
            self.evict(unused, "instance")
        if change.action == "out" and not change.unused:
            self._grow(life, change.at, change.reason)
        elif change.action == "in":
            self._shrink(life, change.at, change.reason)
        return change.action != "none"

    def make_way(self, open_to: np.ndarray) -> str:
        """The model that gives up an instance for somebody who needs memory on one of these devices; empty where none has one more
        than it must have."""
        # One that is just getting an instance will have it to give.
        for life in self.lives.values():
            if life.shrinking or (life.scaling and any(open_to[at] for at in self.cluster.homes(life.model))):
                return life.model
        if (found := replicas.spare(self.cluster, open_to, self._unable())) is None:
            return ""
        self._shrink(self.life(found[0]), found[1], "room")
        return found[0]

    def _unable(self) -> frozenset[str]:
        """Models that cannot give up an instance now."""
        now = self.clock()
        return frozenset(
            life.model
            for life in self.lives.values()
            if life.work is not None or now < life.shrink_at or not self._machine.steady(life.model)
        )

    def relieve(self, newest: str = "") -> None:
        """Evicts where models have come to hold more than there is, the least recently used first, ``newest`` last.

        Before any model, an instance goes that its model does not need.
        """
        for at, there in enumerate(self.cluster.residents):
            if self.fits(at) or any(self.life(model).scaling for model in there):
                continue  # it is looked at again when that has ended
            only = np.arange(len(self.cluster.devices)) == at
            if (found := replicas.spare(self.cluster, only, self._unable())) is not None:
                self._shrink(self.life(found[0]), at, "over budget")
                continue
            pinned = self.policy.pinned
            loaded = [r for r in there.values() if r.loaded and r.model not in pinned]
            for resident in sorted(loaded, key=lambda r: (r.model == newest, r.last_used)):
                others = {r.model for r in there.values() if not r.leaving and r is not resident}
                # Without others, or beside those that stay for ever, it is no use to unload what is just asked for.
                if self.fits(at) or not others or (resident.model == newest and others <= pinned):
                    break
                self.evict(resident.model, "over budget")

    def never(self, ask: Ask) -> bool:
        """Whether the models of one ask are too much for every device together."""
        known = all(self.measured(model) for model in ask.models)
        return len(ask.models) > 1 and known and sum(self.estimate(model) for model in ask.models) > self.all_mb

    def base_mb(self, model: str, ask: Ask) -> int:
        """What a model is given for an ask. One that nothing is known of is given no more than the others of the ask leave it."""
        base = self.estimate(model, ask.edges.get(model, 0))
        if self.measured(model):
            return base
        others = sum(self.estimate(each, ask.edges.get(each, 0)) for each in ask.models if each != model and self.measured(each))
        return max(min(base, math.floor(self.all_mb - others)), 1)

    @property
    def all_mb(self) -> float:
        """MB of all devices together, without their margins."""
        return float(np.maximum(self.cluster.limit, 0.0).sum())

    def moving_beside(self, life: Life) -> str:
        """A model that comes or goes on the same device, where there is too little for all that may be held there now."""
        for at in self.cluster.homes(life.model):
            device, there = self.cluster.devices[at].id, self.cluster.residents[at]
            beside = [each for each in self.lives.values() if each.model in there or device in each.going]
            # What waits for others to go holds nothing yet, and what goes is held although it may have left the plan.
            may = sum(
                there[each.model].held_mb if each.model in there else each.going[device] for each in beside if not each.behind
            )
            if may > self.cluster.limit_at(at):
                moving = [each.model for each in beside if each.work is not None or each.residency.state == "leaving"]
                if moving:
                    return moving[0]
        return ""

    async def room_made(self, model: str) -> None:
        """Returns when those that left for a model's sake are gone."""
        while self.moving_beside(self.life(model)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def fits(self, at: int) -> bool:
        """Whether what stays on a device is no more than it has; what is on its way out is as good as gone."""
        staying = sum(r.held_mb for r in self.cluster.residents[at].values() if not r.leaving)
        return self.cluster.limit_at(at) >= staying

    # What is done.

    def _grow(self, life: Life, at: int, reason: str) -> None:
        mb = self.estimate(life.model, life.edges)
        self.cluster.more(life.model, at, mb, self.clock())
        life.scaling = True
        log.info("one more instance", extra={"model": life.model, "device": self.cluster.devices[at].id, "why": reason, "mb": mb})
        self._start(life, self._add(life, at, reason))

    async def _add(self, life: Life, at: int, reason: str) -> None:
        device, before = self.cluster.devices[at], dict(life.instances)
        after = before | {device.id: before.get(device.id, 0) + 1}
        try:
            await asyncio.wait_for(self._scale(life, after), self._load_seconds)
            if self._machine.processes(life.model) < sum(after.values()):
                raise ModelNotReady(f"A process of {life.model!r} ended while another one was started.")
        except (TimeoutError, ForcegateError) as error:
            await self._not_added(life, at, before, error)
        else:
            life.instances, life.grow_failures = after, 0
            self.tally.scalings[f"out {reason}"] += 1
        finally:
            life.scaling, life.history = False, History()
        if (resident := self.cluster.residents[at].get(life.model)) is not None and not resident.loaded:
            self.cluster.loaded(life.model, at, self.clock())
        self.measure(life)
        self.relieve(life.model)

    async def _not_added(self, life: Life, at: int, before: Mapping[str, int], error: Exception) -> None:
        """Those that were there go on; what there may be of the new one is taken away."""
        with suppress(TimeoutError, ForcegateError):
            await asyncio.wait_for(self._scale(life, before), GONE_SECONDS)
        self.cluster.fewer(life.model, at)
        life.grow_at = self.clock() + min(FIRST_PAUSE * 2.0**life.grow_failures, LONGEST_PAUSE)
        life.grow_failures += 1
        self.tally.scalings["out failed"] += 1
        device = self.cluster.devices[at].id
        log.error("no further instance", extra={"model": life.model, "device": device, "detail": str(error)})
        if getattr(error, "retryable", True):
            self.fault(device, str(error))

    def _shrink(self, life: Life, at: int, reason: str, count: int = 1) -> None:
        life.scaling = life.shrinking = True
        log.info("fewer instances", extra={"model": life.model, "device": self.cluster.devices[at].id, "why": reason, "by": count})
        self._start(life, self._take_away(life, at, reason, count))

    async def _take_away(self, life: Life, at: int, reason: str, count: int) -> None:
        device = self.cluster.devices[at].id
        after = {**life.instances, device: life.instances[device] - count}
        after = {name: number for name, number in after.items() if number}
        try:
            await self._scale(life, after)
            until = self.clock() + GONE_SECONDS
            while (left := self._processes(life)) > sum(after.values()) and self.clock() < until:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
            if left > sum(after.values()):
                # Which of them it is nobody here knows; what it holds goes on to be measured.
                self.tally.not_given_back += 1
                log.error("an instance was not given back", extra={"model": life.model})
        except ForcegateError as error:
            self.tally.scalings["in failed"] += 1
            life.shrink_at = self.clock() + FIRST_PAUSE
            log.error("an instance was not taken away", extra={"model": life.model, "detail": error.detail})
        else:
            for _ in range(count):
                self.cluster.fewer(life.model, at)
            life.instances = after
            self.tally.scalings[f"in {reason}"] += count
        finally:
            life.scaling = life.shrinking = False
            life.history = History()
        self.measure(life)

    def _processes(self, life: Life) -> int:
        self._machine.look()
        return self._machine.processes(life.model)

    async def _scale(self, life: Life, instances: Mapping[str, int]) -> None:
        devices = self.cluster.devices
        await self._machine.scale(life.model, [(devices[self.cluster.position[name]], n) for name, n in instances.items()])

    def shed(self, life: Life, device: str, reason: str) -> bool:
        """The model leaves this device and stays on its others; False where it has none, or cannot now."""
        if len(life.instances) < 2 or life.residency.state != "resident" or life.work is not None:
            return False
        self._shrink(life, self.cluster.position[device], reason, life.instances[device])
        return True

    def alone(self, model: str) -> None:
        """The model comes back as one instance, where it was first: the others died with it, or have been replaced."""
        life = self.life(model)
        life.history = History()
        if not life.device or sum(life.instances.values()) < 2:
            return
        for at in list(self.cluster.homes(model)):
            stays = int(self.cluster.devices[at].id == life.device)
            for _ in range(self.cluster.homes(model)[at].slots - stays):
                self.cluster.fewer(model, at)
        life.at(life.device)

    async def scaled(self, model: str) -> None:
        """Returns when there is nothing to be done any more with the instances of a model."""
        life = self.life(model)
        while life.scaling or self.consider(life):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
