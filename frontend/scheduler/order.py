"""Who goes first: the tasks that wait, by priority and age, and which of them can begin now.

One queue for each model and priority, first in, first out; a task goes up by one priority for every ``ageing_seconds`` that it has
waited. A pass over the heads of all queues then decides, in this order:

1. Tasks whose model is on a device with room begin, in the order of their priorities (backfill: a task whose device is full holds
   up nobody behind it, and tasks of one loaded model go together).
2. Tasks whose model has to be loaded get what room there is, or what idle models that nobody waits for leave behind.
3. A task that has waited for longer than its priority's patience gets an eviction even of a model that others wait for. Where
   everything is busy it claims one: the models that the fewest wait for get no new work until they are gone. One device in eight is
   claimed at a time, so that loads never take more than a part of the machine; by priority and age, so that nothing starves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from frontend.scheduler import eviction
from frontend.scheduler.cluster import Cluster
from frontend.scheduler.placement import Decision, Demand, decide
from frontend.scheduler.policy import PRIORITIES

CLAIMED_PART = 8
"""One in so many devices may be claimed at once."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A task that waits.

    Attributes:
        priority: index into ``PRIORITIES``; 0 goes first.
        entered: when it came in, in s of a monotonic clock.
    """

    id: int
    model: str
    base_mb: int
    work_mb: int
    priority: int
    entered: float
    excluded: frozenset[str] = field(default_factory=frozenset)

    def rank(self, now: float, ageing_seconds: float) -> tuple[int, float]:
        """What tasks are sorted by: the priority that it has come to by now, then its age."""
        return max(self.priority - int(max(now - self.entered, 0.0) / ageing_seconds), 0), self.entered


@dataclass(slots=True)
class Claim:
    """A device that is being made free for a model, and the models that shall leave it."""

    at: int
    victims: tuple[str, ...]


class Order:
    """The tasks that wait for a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._queues: dict[str, list[deque[Waiting]]] = {}
        self._claims: dict[str, Claim] = {}
        self.refused: list[tuple[Waiting, Decision]] = []
        """Tasks that fit nowhere, taken out by the last pass."""

    def __len__(self) -> int:
        return sum(self.waiting(model) for model in self._queues)

    def waiting(self, model: str) -> int:
        """Tasks that wait for a model."""
        return sum(map(len, self._queues.get(model, ())))

    def push(self, task: Waiting, again: bool = False) -> None:
        """A task comes in; one that lost its device comes in ``again`` and is the first of its queue."""
        queues = self._queues.setdefault(task.model, [deque() for _ in PRIORITIES])
        if again:
            queues[task.priority].appendleft(task)
        else:
            queues[task.priority].append(task)

    def heads(self, now: float) -> list[Waiting]:
        """The next task of each model, the most urgent first."""
        ageing = self.cluster.policy.ageing_seconds
        first = [
            min((queue[0] for queue in queues if queue), key=lambda task: task.rank(now, ageing))
            for queues in self._queues.values()
            if any(queues)
        ]
        return sorted(first, key=lambda task: task.rank(now, ageing))

    def dispatch(self, now: float) -> Iterator[tuple[Waiting | None, str, Decision]]:
        """What can be done now, one step at a time: task, model, decision.

        The caller carries out each step on the cluster before it asks for the next one. With ``use`` the task begins and is not in
        the queue any more. With ``load`` and ``evict`` the model is to be loaded; the task waits on, with None in its place.
        """
        self.refused = []
        self._drop_claims()
        yield from self._use(now)
        yield from self._claimed(now)
        yield from self._load(now)
        self._claim(now)

    def _use(self, now: float) -> Iterator[tuple[Waiting | None, str, Decision]]:
        for head in self.heads(now):
            task: Waiting | None = head
            while task is not None and self.cluster.homes(task.model):
                decision = decide(self._demand(task), self.cluster, now)
                if decision.action != "use":
                    break
                self._queues[task.model][task.priority].popleft()
                yield task, task.model, decision
                task = self._head(task.model, now)

    def _load(self, now: float) -> Iterator[tuple[Waiting | None, str, Decision]]:
        """Room, or what idle models leave behind."""
        cluster = self.cluster
        if not self._any_room():
            return
        keep = frozenset(model for model, queues in self._queues.items() if any(queues))
        smallest_failed = float("inf")
        for task in self.heads(now):
            # Where nothing restricts a model, one that needs more than another that found no room finds none either.
            free = task.model not in cluster.policy.allowed and not cluster.homes(task.model) and not task.excluded
            if free and task.base_mb + task.work_mb >= smallest_failed:
                continue
            patient = now - task.entered < cluster.policy.patience_seconds[task.priority]
            replica = self._wants_replica(task, now)
            decision = decide(
                self._demand(task, replica, keep if patient or cluster.homes(task.model) else frozenset()), cluster, now
            )
            if decision.action in ("load", "evict"):
                self.release(task.model)
                yield None, task.model, decision
            elif decision.action == "refuse":
                self._queues[task.model][task.priority].popleft()
                self.refused.append((task, decision))
            elif free and patient:
                smallest_failed = min(smallest_failed, task.base_mb + task.work_mb)

    def _claimed(self, now: float) -> Iterator[tuple[Waiting | None, str, Decision]]:
        """Claims whose models have come to rest."""
        for model, claim in list(self._claims.items()):
            there = self.cluster.residents[claim.at]
            if any(there[victim].in_flight for victim in claim.victims if victim in there):
                continue
            victims = tuple(victim for victim in claim.victims if victim in there)
            task = self._head(model, now)
            del self._claims[model]
            if task is not None:
                reason = f"the oldest task of {model} has waited for {now - task.entered:.0f} s"
                device = self.cluster.devices[claim.at].id
                yield None, model, Decision("evict" if victims else "load", claim.at, device, victims, 0.0, (reason,))

    def _claim(self, now: float) -> None:
        """The tasks that have waited for too long claim devices, in their order."""
        cluster, policy = self.cluster, self.cluster.policy
        most = max(1, len(cluster.devices) // CLAIMED_PART)
        overdue = sorted(
            (
                task
                for task in self.heads(now)
                if now - task.entered >= policy.patience_seconds[task.priority]
                and task.model not in self._claims
                and not self._has_home(task.model)
            ),
            key=lambda task: task.rank(now, policy.ageing_seconds),
        )
        claimed = {claim.at for claim in self._claims.values()}
        waiting = {model: self.waiting(model) for model in self._queues}
        for task in overdue:
            if len(self._claims) >= most:
                return
            open_to = cluster.usable & cluster.allowed(task.model)
            for at in (*claimed, *(cluster.position[device] for device in task.excluded if device in cluster.position)):
                open_to[at] = False
            found = eviction.claim(cluster, open_to, task.base_mb + task.work_mb, waiting, now)
            if found is None:
                continue
            at, victims = found
            self._claims[task.model] = Claim(at, victims)
            claimed.add(at)
            for victim in victims:
                cluster.leave(victim, at)

    def release(self, model: str) -> None:
        """The model's claim, if it has one, is not needed any more."""
        if (claim := self._claims.pop(model, None)) is not None:
            for victim in claim.victims:
                if victim in self.cluster.residents[claim.at]:
                    self.cluster.leave(victim, claim.at, False)

    def _drop_claims(self) -> None:
        for model, claim in list(self._claims.items()):
            if not self.cluster.usable[claim.at] or not self.waiting(model) or self._has_home(model):
                self.release(model)

    def _has_home(self, model: str) -> bool:
        return any(self.cluster.usable[at] and not resident.leaving for at, resident in self.cluster.homes(model).items())

    def _wants_replica(self, task: Waiting, now: float) -> bool:
        homes = self.cluster.homes(task.model)
        loading = any(not resident.loaded for resident in homes.values())
        return bool(homes) and not loading and now - task.entered >= self.cluster.policy.scale_out_seconds

    def _any_room(self) -> bool:
        """Whether any device could take a model now, or after an eviction."""
        cluster = self.cluster
        return bool((cluster.usable & ((cluster.count < cluster.policy.models_per_device) | (cluster.evictable_count > 0))).any())

    def _head(self, model: str, now: float) -> Waiting | None:
        ageing = self.cluster.policy.ageing_seconds
        waiting = [queue[0] for queue in self._queues.get(model, ()) if queue]
        return min(waiting, key=lambda task: task.rank(now, ageing), default=None)

    def _demand(self, task: Waiting, replica: bool = False, keep: frozenset[str] = frozenset()) -> Demand:
        return Demand(task.model, task.base_mb, task.work_mb, replica, task.excluded, keep - {task.model})
