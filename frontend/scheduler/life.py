"""What the owner of the residents remembers: who asks, who holds what, how each model stands, and what has been counted."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from forcegate.errors import ForcegateError
from frontend.scheduler.policy import PRIORITIES
from frontend.scheduler.replicas import History
from frontend.scheduler.residency import Residency

LOAD_BUCKETS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
WAIT_BUCKETS: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
SCALINGS: Final = (
    *("out queue", "out profile", "out failed"),
    *("in idle", "in room", "in over budget", "in profile", "in drain", "in failed"),
)
"""What may become of the number of a model's instances; a counter that begins at 1 has increased for nobody."""


class Client(Protocol):
    """A process that asks for models: a gateway or a worker."""

    name: str

    def granted(self, ask: int) -> None:
        """All models of this ask are resident, and the client holds them until it gives them back or ends."""

    def refused(self, ask: int, error: ForcegateError) -> None:
        """They will not be."""

    def recall(self, model: str) -> None:
        """Somebody else needs the memory: begin nothing new with the model, and give it back once it is idle."""


@dataclass(eq=False)
class Ask:
    """A client waits until all of ``models`` are resident at once.

    Attributes:
        edges: neighbour pairs of the largest structure that each is asked for; those too small to be counted are left out.
        why: what stood in the way at the last look.
    """

    client: Client
    id: int
    models: tuple[str, ...]
    priority: int
    since: float
    edges: Mapping[str, int] = field(default_factory=dict)
    why: str = ""

    def rank(self, now: float, ageing_seconds: float) -> tuple[int, float]:
        """What asks are sorted by: the priority that it has come to by now, then its age."""
        return max(self.priority - int(max(now - self.since, 0.0) / ageing_seconds), 0), self.since


@dataclass(eq=False)
class Life:
    """One model.

    Attributes:
        instances: how many there are on each device that it is on, or is going to, the oldest first.
        scaling: their number is being changed; ``shrinking``: it is made less.
        history: of their load.
        grow_at: when one more may be tried after ``grow_failures`` in a row that have failed.
        shrink_at: when one may be taken away again after that has failed.
        dtype: that it shall run in; empty for its own.
        holders: clients that may have work in flight.
        behind: models that have to be gone before its load begins.
        work: the load or the unload that is under way.
        held: MB that its processes hold of each device, as of the last measurement.
        going: MB that it may still hold of each device although its place in the plan is another model's already.
        sizes: when it was last asked for structures of so many neighbour pairs, or evaluated them.
        avoid: the device that it ran out of memory on, when there was room on another one.
        place_mb: what its load was given of the device.
        moved_at: when it was last moved for that reason.
        ran_out_at: when it last ran out of memory.
        evicted: why it was unloaded last; empty for one that was never resident, or is.
        error: what its last load ended with.
    """

    model: str
    residency: Residency = field(default_factory=Residency)
    instances: dict[str, int] = field(default_factory=dict)
    scaling: bool = False
    shrinking: bool = False
    history: History = field(default_factory=History)
    grow_failures: int = 0
    grow_at: float = -math.inf
    shrink_at: float = -math.inf
    dtype: str = ""
    holders: set[Client] = field(default_factory=set)
    behind: set[str] = field(default_factory=set)
    work: asyncio.Task[None] | None = None
    held: dict[str, int] = field(default_factory=dict)
    going: dict[str, int] = field(default_factory=dict)
    sizes: dict[int, float] = field(default_factory=dict)
    place_mb: int = 0
    avoid: str = ""
    moved_at: float = -math.inf
    ran_out_at: float = -math.inf
    evicted: str = ""
    error: ForcegateError | None = None

    def at(self, device: str) -> None:
        """One instance of it is on this device, or is going to be, and no other."""
        self.instances = {device: 1}

    def away(self) -> None:
        """It is on no device."""
        self.instances, self.held, self.going, self.sizes, self.history = {}, {}, {}, {}, History()

    @property
    def edges(self) -> int:
        """Neighbour pairs of the largest structure that it has to have memory for; 0 where all are small."""
        return max(self.sizes, default=0)

    def asked_for(self, edges: int, now: float) -> bool:
        """It is asked for a structure of so many pairs, or evaluates one; whether that is more than was known of."""
        before = self.edges
        if edges:
            self.sizes[edges] = now
        return edges > before

    def forget(self, before: float) -> None:
        """Sizes that nobody has asked for since then do not count any more."""
        self.sizes = {edges: at for edges, at in self.sizes.items() if at >= before}

    @property
    def device(self) -> str:
        """Id of the device that it is on, or is going to, of several the first; empty for none."""
        return next(iter(self.instances), "")

    @property
    def memory_mb(self) -> int:
        """What its processes hold, as of the last measurement."""
        return sum(self.held.values())

    @property
    def state(self) -> str:
        """``resident``, ``loading``, ``leaving``, ``unloading``, ``stuck``, ``failed``, ``evicted`` or ``absent``."""
        state = self.residency.state
        if state == "absent":
            return "loading" if self.device else "evicted" if self.evicted else "absent"
        return "unloading" if state == "settling" else state

    def as_dict(self, now: float, last_used: float | None, pinned: bool) -> dict[str, Any]:
        """What is told of it."""
        return {
            "model": self.model,
            "state": self.state,
            "device": self.device or None,
            "instances": dict(self.instances),
            "memory_mb": self.memory_mb or None,
            "pinned": pinned,
            "idle_seconds": None if last_used is None else round(max(now - last_used, 0.0), 1),
            "evicted_for": self.evicted or None,
            "error": None if self.error is None else self.error.as_dict(),
        }


class Histogram:
    """Counts by size, as Prometheus has them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[next((at for at, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))] += 1
        self.total += value

    def as_dict(self) -> dict[str, Any]:
        """Cumulative counts by upper bound, and the sum."""
        sums = [sum(self.counts[: at + 1]) for at in range(len(self.counts))]
        return {"buckets": dict(zip([*map(str, self.bounds), "+Inf"], sums, strict=True)), "sum": self.total}


@dataclass
class Tally:
    """What has happened since the owner began.

    Attributes:
        decisions: by action (``load``, ``evict``, ``wait``, ``refuse``); a decision to wait counts once for each ask and model.
        evictions: by reason (``room``, ``idle``, ``asked``, ``drain``, ``over budget``, ``out of memory``,
            ``profile``, ``instance``: nobody used it, and another model's work waited for an instance).
        scalings: instances that were added (``out``) and taken away (``in``), with the reason, and attempts that failed.
        failures: loads that failed, by the error's code.
        faults: of devices, by id: loads that failed for a reason that may be the device's, models that stopped answering.
        out_of_memory: calls of a model that ran out of memory.
        not_given_back: unloads after which the memory did not come back, so that the process was ended.
    """

    decisions: Counter[str] = field(default_factory=Counter)
    loads: Counter[str] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)
    scalings: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SCALINGS, 0)))
    failures: Counter[str] = field(default_factory=Counter)
    not_given_back: int = 0
    quarantines: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    out_of_memory: Counter[str] = field(default_factory=Counter)
    load_seconds: Histogram = field(default_factory=lambda: Histogram(LOAD_BUCKETS))
    waits: Mapping[str, Histogram] = field(default_factory=lambda: {name: Histogram(WAIT_BUCKETS) for name in PRIORITIES})

    def as_dict(self) -> dict[str, Any]:
        """As it is told."""
        return {
            "decisions": dict(self.decisions),
            "loads": dict(self.loads),
            "evictions": dict(self.evictions),
            "scalings": dict(self.scalings),
            "failures": dict(self.failures),
            "not_given_back": self.not_given_back,
            "quarantines": self.quarantines,
            "faults": dict(self.faults),
            "out_of_memory": dict(self.out_of_memory),
            "load_seconds": self.load_seconds.as_dict(),
            "wait_seconds": {name: each.as_dict() for name, each in self.waits.items()},
        }
