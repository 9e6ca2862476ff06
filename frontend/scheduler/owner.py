"""The owner of the residents of one Triton server: it alone decides what is loaded and unloaded, one step after the other.

Clients (gateways, workers) ask for models, hold them while they may have work in flight, and give them back when they are recalled;
nothing is unloaded that somebody holds. The plan is a ``Cluster``: a model that shall go leaves it at once, and one that shall come
is in it before its load begins, so that memory is never promised twice. The machine follows: a load begins when the models that it
displaces are gone and their memory with them.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from forcegate.errors import ForcegateError, ModelNotReady, NoRoom
from frontend.scheduler import eviction
from frontend.scheduler.carrier import WORK_SECONDS
from frontend.scheduler.life import Ask, Client, Life
from frontend.scheduler.placement import Decision, Demand, decide
from frontend.scheduler.policy import PRIORITIES, TASK_PRIORITY
from frontend.scheduler.scaling import Scaler

log = logging.getLogger(__name__)

IN_USE_SECONDS: Final = 2.0
"""Since the last use of a model that is in use; gateways and workers tell of uses every half second."""
MOVE_SECONDS: Final = 600.0
"""A model that ran out of memory is moved to another device no more often: where it fits on none, moving does not help."""


class Owner(Scaler):
    """See the module; ``Carrier`` has the arguments."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._told: set[tuple[str, int, str]] = set()

    # What clients say.

    def ask(
        self, client: Client, number: int, models: Iterable[str], priority: int = 1, edges: Mapping[str, int] | None = None
    ) -> None:
        """A client wants to use all of ``models`` at once; it is told when it may, or that it never will.

        Args:
            edges: neighbour pairs of the largest structure that each is asked for.
        """
        names, sizes = tuple(models), edges or {}
        if len(names) > 1 and sum(self.estimate(name, sizes.get(name, 0)) for name in names) > self.all_mb:
            sizes = {}  # they do not fit beside each other at that size: each takes what it gets, and makes its passes smaller
        self.asks.append(Ask(client, number, names, min(max(priority, 0), len(PRIORITIES) - 1), self.clock(), sizes))
        self.step()

    def cancel(self, client: Client, number: int) -> None:
        """It does not wait any longer; a load that was begun for it goes on."""
        self.asks = [ask for ask in self.asks if ask.client is not client or ask.id != number]

    def release(self, client: Client, model: str) -> None:
        """It has nothing in flight with the model, and asks before it begins again."""
        life = self.life(model)
        if client in life.holders:
            life.holders.discard(client)
            life.residency.finish(life.memory_mb, self.clock())
            self.go_on(life)

    def gone(self, client: Client) -> None:
        """It has ended; what it held is free, and nobody waits for what it asked for."""
        self.asks = [ask for ask in self.asks if ask.client is not client]
        self._waits.pop(client, None)
        self._uses.pop(client, None)
        for life in list(self.lives.values()):
            self.release(client, life.model)

    def used(self, models: Iterable[str]) -> None:
        """Somebody has used these a moment ago."""
        now = self.clock()
        for model in models:
            for at in self.cluster.homes(model):
                self.cluster.used(model, at, now)

    # What is decided.

    def step(self) -> None:
        """Grants what is there, and brings what is not, in the order of the asks."""
        if not self.active:
            return
        now = self.clock()
        for device in self._devices():
            if device.id in self.cluster.position:
                self.cluster.read(device)
        keep: set[str] = set()
        for ask in sorted(self.asks, key=lambda ask: ask.rank(now, self.policy.ageing_seconds)):
            if ask not in self.asks:  # refused a moment ago, together with another one
                continue
            there = all(self.life(model).residency.state == "resident" for model in ask.models)
            if there and not (why := self._making_room(ask, now)):
                self._grant(ask, now)
                continue
            # Whoever came first keeps what it has got already while it waits for the rest.
            keep |= set(ask.models)
            if there:
                ask.why = why
                continue
            for model in ask.models:
                if ask in self.asks:
                    self._provide(model, ask, frozenset(keep), now)

    def _grant(self, ask: Ask, now: float) -> None:
        self.asks.remove(ask)
        for model in ask.models:
            life = self.life(model)
            if ask.client not in life.holders:
                life.holders.add(ask.client)
                life.residency.start()
        self.used(ask.models)
        self.tally.waits[PRIORITIES[ask.priority]].observe(max(now - ask.since, 0.0))
        ask.client.granted(ask.id)

    def _provide(self, model: str, ask: Ask, keep: frozenset[str], now: float) -> None:
        life = self.life(model)
        if life.device or life.work is not None:
            ask.why = f"{model} is {life.state}"
            return
        if life.residency.state == "failed" and now < life.residency.retry_at:
            self._refuse(model, self._failure(life, now))
            return
        demand = Demand(model, self.base_mb(model, ask), keep=keep, excluded=frozenset({life.avoid} - {""}))
        decision = decide(demand, self.cluster, now)
        if demand.excluded and decision.action not in ("load", "evict"):
            decision = decide(replace(demand, excluded=frozenset()), self.cluster, now)
        ask.why = "; ".join(decision.reasons)
        used = self._used(decision, now) if decision.action == "evict" else ""
        if used or decision.action == "wait":
            if self._gathers(ask, now):
                decision = Decision("wait", reasons=(f"others use {used}, which would have to go",)) if used else decision
            elif other := self.make_way(self.cluster.usable & self.cluster.allowed(model)):
                decision = Decision("wait", reasons=(f"{other} gives up an instance",))
            ask.why = decision.reasons[0]
        if decision.action == "wait" and self.never(ask):
            decision = Decision("refuse", reasons=(f"{' and '.join(ask.models)} do not fit beside each other",))
            ask.why = decision.reasons[0]
        told = (ask.client.name, ask.id, model)
        if decision.action != "wait" or told not in self._told:
            self.tally.decisions[decision.action] += 1
            self._told.add(told)
        if decision.action == "refuse":
            self._refuse(model, NoRoom(f"{model} cannot be loaded: {ask.why}."))
        elif decision.action in ("load", "evict"):
            self._make_room(decision, model)
            self._place(life, decision, demand.base_mb, now)
            life.asked_for(ask.edges.get(model, 0), now)

    def _making_room(self, ask: Ask, now: float) -> str:
        """What has to be waited for so that a larger structure than before has the memory that it takes; empty for nothing."""
        for model, edges in ask.edges.items():
            life = self.life(model)
            if life.scaling and edges > life.edges:
                return f"the instances of {model} are being changed"
            if life.asked_for(edges, now):
                self.measure(life)
            moving = self.moving_beside(life)
            if not moving and not all(map(self.fits, self.cluster.homes(model))):
                self.relieve(model)
                moving = self.moving_beside(life)
            if moving:
                return f"{moving} leaves, or is being loaded: there is too little memory for it and a structure of this size"
        # One that all the others cannot make room for may have had to leave itself.
        return next((f"{model} leaves" for model in ask.models if self.life(model).residency.state != "resident"), "")

    def _gathers(self, ask: Ask, now: float) -> bool:
        """Whether a task leaves models in use alone for a while: tasks of one model are carried out together, which saves loads."""
        return ask.priority >= TASK_PRIORITY and now - ask.since < self.policy.gather_seconds

    def _used(self, decision: Decision, now: float) -> str:
        """One in use of the models that would have to go; empty where nobody uses any of them."""
        there = self.cluster.residents[decision.at]
        return next((victim for victim in decision.evictions if now - there[victim].last_used < IN_USE_SECONDS), "")

    def _make_room(self, decision: Decision, model: str) -> None:
        for victim in decision.evictions:
            self.life(model).behind.add(victim)
            self.evict(victim, "room")

    def displace(self, model: str, at: int, victims: Iterable[str]) -> None:
        """The model gets the place of others on a device; its load begins when they are gone."""
        decision = Decision("evict", at, self.cluster.devices[at].id, tuple(victims), reasons=("a profile wants it there",))
        self.tally.decisions["evict"] += 1
        self._make_room(decision, model)
        self._place(self.life(model), decision, self.estimate(model), self.clock())

    def _place(self, life: Life, decision: Decision, base_mb: int, now: float) -> None:
        """The model is in the plan from now on; its load begins when those that it displaces are gone."""
        life.at(decision.device)
        life.error, life.evicted, life.place_mb = None, "", base_mb
        # Until they are gone its place holds what they may come to hold, so that nobody else is promised any of it.
        going = sum(self.life(victim).going.get(decision.device, 0) for victim in life.behind)
        self.cluster.load(life.model, decision.at, max(base_mb, going), now)
        log.info(
            "placed",
            extra={"model": life.model, "device": decision.device, "memory_mb": base_mb, "why": "; ".join(decision.reasons),
                   "evicted": list(decision.evictions)},
        )  # fmt: skip
        self._begin_load(life)

    def _begin_load(self, life: Life) -> None:
        if life.work is None and not life.behind and life.residency.want(self.clock()) == "load":
            self.cluster.expected(life.model, self.cluster.position[life.device], life.place_mb)
            self._start(life, self._load(life))

    def evict(self, model: str, reason: str) -> None:
        """The model leaves: at once where nobody holds it, else as soon as everybody has given it back."""
        life = self.life(model)
        if life.residency.state != "resident":
            return
        for at, resident in list(self.cluster.homes(model).items()):
            if reason == "room":  # its place in the plan is taken by the model that waits for it
                life.going[self.cluster.devices[at].id] = resident.held_mb
                self.cluster.remove(model, at)
            else:
                self.cluster.depart(model, at)
        self.tally.evictions[reason] += 1
        life.evicted = reason
        life.residency.evict(life.memory_mb, self.clock())
        for client in list(life.holders):
            client.recall(model)
        self.go_on(life)

    def go_on(self, life: Life) -> None:
        """Begins the unload that nobody stands in the way of any more."""
        if life.residency.state == "unloading" and life.work is None:
            self._start(life, self._unload(life))

    def departed(self, model: str) -> None:
        """The loads that waited for its memory begin."""
        for life in self.lives.values():
            if model in life.behind:
                life.behind.discard(model)
                self._begin_load(life)

    def refuse(self, model: str) -> None:
        """Those who wait for a model whose load has failed are told."""
        self._refuse(model, self._failure(self.life(model), self.clock()))

    async def bring(self, model: str) -> None:
        """Loads a model where there is room for it, beside those that are there.

        Raises:
            NoRoom: there is none now.
            ForcegateError: its load failed.
        """
        life = self.life(model)
        if not life.device:
            while (decision := decide(Demand(model, self.estimate(model)), self.cluster, self.clock())).action != "load":
                # What is being loaded may turn out to be smaller than was thought.
                if any(other.state == "loading" for other in self.lives.values()):
                    await asyncio.sleep(0.05)
                    continue
                raise NoRoom(f"{model} has no room beside the others.", "It is loaded when it is asked for.")
            self.tally.decisions["load"] += 1
            self._place(life, decision, self.estimate(model), self.clock())
        while life.state == "loading":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if life.error is not None:
            raise life.error

    async def departure(self, life: Life) -> None:
        """Returns when a model that is on its way out is gone."""
        while life.residency.state in ("leaving", "unloading", "settling", "stuck"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def _refuse(self, model: str, error: ForcegateError) -> None:
        for ask in [ask for ask in self.asks if model in ask.models]:
            self.asks.remove(ask)
            ask.client.refused(ask.id, error)

    def _failure(self, life: Life, now: float) -> ForcegateError:
        """What callers are told while a failed load is not tried again."""
        error = life.error or ModelNotReady(f"The model {life.model!r} could not be loaded.")
        if not error.retryable:
            return error
        again = max(math.ceil(life.residency.retry_at - now), 1)
        told = ModelNotReady(
            f"The model {life.model!r} could not be loaded: {error.detail}",
            f"It is tried again after {again} s. {error.hint}".strip(),
        )
        told.retry_after = again
        return told

    def ran_out(self, model: str, edges: int, times: int) -> None:
        """Calls of a model ran out of memory on passes of so many pairs: it is given a fifth more from now on.

        On another device, where there is room for it; else beside fewer others, where they are too many for that.
        """
        life, now = self.life(model), self.clock()
        life.ran_out_at = now
        self.tally.out_of_memory[model] += times
        if (at := self.cluster.position.get(life.device)) is None:
            return
        device = self.cluster.devices[at]
        self._footprints.ran_out(model, device.kind, edges)
        self.measure(life)
        log.warning(
            "ran out of memory", extra={"model": model, "device": device.id, "edges": edges, "need_mb": self.estimate(model)}
        )
        if not self.active or life.residency.state != "resident":
            return
        demand = Demand(model, self.estimate(model), excluded=frozenset({device.id}))
        moved_lately = now - life.moved_at < MOVE_SECONDS
        if not moved_lately and model not in self.policy.pinned and decide(demand, self.cluster, now).action == "load":
            life.avoid, life.moved_at = device.id, now
            self.evict(model, "out of memory")
        else:
            self.relieve(model)
        self.step()

    def tick(self) -> None:
        """Time has passed: measurements, models that nobody asks for, devices that come back."""
        now = self.clock()
        self._machine.look()
        for life in list(self.lives.values()):
            life.forget(now - WORK_SECONDS)
            self.measure(life)
        for device in self.cluster.devices:
            health = self.ward.of(device.id)
            health.tick(now)
            self.cluster.bar(device.id, "" if health.takes_work else f"{health.state}: {health.reason}")
            if self.active and not health.takes_work:
                self.empty(device.id, "drain")  # what was on its way there when it was taken out
        if self.active:
            self.relieve()
            for _, model in eviction.expired(self.cluster, now):
                self.evict(model, "idle")
            self.rescale()
            self._told &= {(ask.client.name, ask.id, model) for ask in self.asks for model in ask.models}
        self.step()

    def adopt(self, model: str, device: str, dtype: str = "") -> None:
        """The model is there although nobody here has loaded it: at the start, or by Triton's own interface."""
        life, now = self.life(model), self.clock()
        if life.device or life.work is not None or device not in self.cluster.position:
            return
        life.at(device)
        life.dtype, life.evicted, life.error = dtype, "", None
        self._machine.look()
        life.residency.want(now)
        life.residency.state, life.residency.failures = "resident", 0
        self.cluster.load(model, self.cluster.position[device], self.estimate(model), now, ready=True)
        self.measure(life)

    def lost(self, model: str, why: str) -> None:
        """The model is gone although nobody here has unloaded it."""
        life = self.life(model)
        if life.work is not None or not life.device:
            return
        for at in list(self.cluster.homes(model)):
            self.cluster.remove(model, at)
        for client in list(life.holders):
            client.recall(model)
        life.holders.clear()
        life.residency.gone(self.clock())
        life.away()
        life.evicted = why
        self.departed(model)

    def fault(self, device: str, why: str) -> None:
        """Something failed that the device may be the reason of; repeated faults put it into quarantine."""
        self.tally.faults[device] += 1
        self.ward.fault(device, why, self.clock())

    def _quarantined(self, device: str, why: str) -> None:
        others = [
            each for each in self.cluster.devices if each.id != device and self.ward.of(each.id).takes_work and not each.fault
        ]
        if not (self.active and others):
            # Without another place for its models it would only be an outage; whoever has an alert on the faults decides.
            self.ward.of(device).give_back()
            log.error("device has repeated faults, and there is no other one for its models", extra={"device": device, "why": why})
            return
        self.tally.quarantines += 1
        log.error("device is in quarantine", extra={"device": device, "why": why})
        self.empty(device, "drain")

    def empty(self, device: str, reason: str) -> None:
        """Everything leaves a device; what is asked for again is placed elsewhere."""
        health = self.ward.of(device)
        self.cluster.bar(device, "" if health.takes_work else f"{health.state}: {health.reason}")
        for life in [life for life in self.lives.values() if device in life.instances]:
            if not self.shed(life, device, reason):
                self.evict(life.model, reason)

    async def close(self) -> None:
        """Nothing is begun any more; what is under way is left to Triton's own end."""
        self.active = False
        work = [life.work for life in self.lives.values() if life.work is not None]
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
