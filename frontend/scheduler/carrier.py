"""What is done for the owner of the residents (owner.py): loads, unloads, and the measurements that follow them."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from forcefields.cost import Cost
from forcegate.errors import ForcegateError, ModelNotReady
from frontend.scheduler.cluster import Cluster
from frontend.scheduler.device import Device
from frontend.scheduler.footprint import BASE_MB, Footprints
from frontend.scheduler.life import Life, Tally
from frontend.scheduler.policy import Policy
from frontend.scheduler.quarantine import Ward

log = logging.getLogger(__name__)

GONE_SECONDS: Final = 10.0
"""How long a model's process may outlive its unload; then it is ended."""
LOOK_SECONDS: Final = 0.05
WORK_SECONDS: Final = 60.0
"""How long room is kept for structures of a size after one was asked for."""
GROWTH: Final = 1.05
"""A model that holds so much more than was known of it has its footprint corrected."""


class Machine(Protocol):
    """What carries the decisions out."""

    async def load(self, model: str, device: Device, dtype: str) -> None:
        """Loads a model onto a device and checks it.

        Raises:
            ForcegateError: it cannot be used.
        """

    async def unload(self, model: str) -> None:
        """Unloads a model; what it is evaluating is finished first."""

    async def scale(self, model: str, instances: Sequence[tuple[Device, int]]) -> None:
        """Gives a loaded model so many instances on each of these devices, and none on others. Those that stay go on meanwhile.

        Raises:
            ForcegateError: one could not be started; it is as before.
        """

    def steady(self, model: str) -> bool:
        """Whether nothing else is being done with a loaded model: it is not being brought back."""

    def processes(self, model: str) -> int:
        """How many processes of the model ``look`` has found."""

    def look(self) -> None:
        """Finds the processes that there are now."""

    def held_mb(self, model: str, device: Device) -> int:
        """Memory of the device that the model's processes hold, in MB of 2^20 bytes; 0 where ``look`` has found none."""

    def end(self, model: str) -> None:
        """Ends the model's processes, whatever they do."""

    def cost(self, model: str) -> Cost | None:
        """What the model's work costs by its newest calibration; None where nothing is known of it."""

    def family(self, model: str) -> str:
        """The family of a model: its members are taken to be of one size until they are measured."""


class Carrier(ABC):
    """The lives of the models, and what moves them on. ``Owner`` decides.

    Args:
        devices: gives the newest readings; the first must be there already.
        active: whether anything is decided at all; else it is only known.
        load_seconds: a load that takes longer is given up, and its process ended.
        clock: monotonic time in s.
    """

    def __init__(
        self,
        machine: Machine,
        devices: Callable[[], Iterable[Device]],
        policy: Policy,
        footprints: Footprints,
        active: bool = True,
        load_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine, self._devices, self._footprints = machine, devices, footprints
        self.policy, self.active, self._load_seconds, self.clock = policy, active, load_seconds, clock
        self.cluster = Cluster(devices(), policy)
        self.ward = Ward(self._quarantined)
        self.lives: dict[str, Life] = {}
        self.tally = Tally()

    def life(self, model: str) -> Life:
        """What is known of a model by its canonical name."""
        return self.lives.setdefault(model, Life(model))

    @abstractmethod
    def step(self) -> None:
        """Something has changed."""

    @abstractmethod
    def go_on(self, life: Life) -> None:
        """What was under way with a model has ended, or one of those who hold it has given it back."""

    @abstractmethod
    def evict(self, model: str, reason: str) -> None:
        """The model leaves, as soon as it can."""

    @abstractmethod
    def relieve(self, newest: str = "") -> None:
        """A model has come to hold more than there is."""

    @abstractmethod
    def refuse(self, model: str) -> None:
        """A load has failed: those who wait for it are told."""

    @abstractmethod
    def departed(self, model: str) -> None:
        """A model is gone, and its memory with it."""

    @abstractmethod
    def fault(self, device: str, why: str) -> None:
        """Something has failed that the device may be the reason of."""

    @abstractmethod
    def _quarantined(self, device: str, why: str) -> None: ...

    def _start(self, life: Life, work: Coroutine[Any, Any, None]) -> None:
        task = life.work = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: self._finished(life, done))

    def _finished(self, life: Life, done: asyncio.Task[None]) -> None:
        if life.work is done:
            life.work = None
        if not done.cancelled():
            if (error := done.exception()) is not None:
                log.error("a step of the scheduler failed", exc_info=error, extra={"model": life.model})
            self.go_on(life)
            self.step()

    async def _load(self, life: Life) -> None:
        device = self.cluster.devices[self.cluster.position[life.device]]
        began = self.clock()
        try:
            await asyncio.wait_for(self._machine.load(life.model, device, life.dtype), self._load_seconds)
        except (TimeoutError, ForcegateError) as error:
            if isinstance(error, TimeoutError):
                error = ModelNotReady(f"The load of {life.model!r} had not ended after {self._load_seconds:g} s.")
            await self._load_failed(life, device, error)
            return
        now = self.clock()
        self._machine.look()
        life.residency.loaded(now)
        self.tally.loads[life.model] += 1
        self.tally.load_seconds.observe(now - began)
        for at in self.cluster.homes(life.model):
            self.cluster.loaded(life.model, at, now)
            # Time in which it waited for others to go is no reason to stay longer.
            self.cluster.residents[at][life.model].load_seconds = now - began
        life.avoid = ""
        if held := self._machine.held_mb(life.model, device):
            self._footprints.loaded(life.model, device.kind, held)
        self.measure(life)
        self.relieve(life.model)
        log.info("loaded", extra={"model": life.model, "seconds": round(now - began, 2), "memory_mb": life.memory_mb})

    async def _load_failed(self, life: Life, device: Device, error: ForcegateError) -> None:
        """What is left of it is ended before anybody else gets its place."""
        await self._clear(life, 0.0)
        now = self.clock()
        life.error = error
        self.tally.failures[error.code] += 1
        for at in list(self.cluster.homes(life.model)):
            self.cluster.remove(life.model, at)
        life.away()
        life.residency.load_failed(error.detail, now)
        log.error("load failed", extra={"model": life.model, "device": device.id, "code": error.code, "detail": error.detail})
        if error.retryable:
            self.fault(device.id, error.detail)
        self.refuse(life.model)

    async def _unload(self, life: Life) -> None:
        """Unloads, and waits until the processes are gone and their memory with them."""
        began = self.clock()
        try:
            await self._machine.unload(life.model)
        except ForcegateError as error:
            log.warning("unload failed", extra={"model": life.model, "detail": error.detail})
        life.residency.unloaded(self.clock())
        held, left = life.memory_mb, await self._clear(life, GONE_SECONDS)
        if left:
            self.tally.not_given_back += 1
            log.error("memory was not given back: process ended", extra={"model": life.model, "held_mb": held, "left_mb": left})
        life.residency.gone(self.clock())
        for at in list(self.cluster.homes(life.model)):
            self.cluster.remove(life.model, at)
        life.away()
        log.info("unloaded", extra={"model": life.model, "seconds": round(self.clock() - began, 2), "given_back_mb": held})
        self.departed(life.model)

    async def _clear(self, life: Life, patience: float) -> int:
        """Waits until the model holds nothing; after ``patience`` its processes are ended. Returns what it held until then."""
        until = self.clock() + patience
        while (left := self._left(life)) and self.clock() < until:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        if not left:
            return 0
        self._machine.end(life.model)
        while self._left(life):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        return left

    def _left(self, life: Life) -> int:
        self._machine.look()
        return sum(self._machine.held_mb(life.model, device) for device in self._on(life))

    def _on(self, life: Life) -> list[Device]:
        """The devices that a model is on."""
        return [self.cluster.devices[self.cluster.position[name]] for name in life.instances]

    def measured(self, model: str) -> bool:
        """Whether the model has been loaded here before, so that its size is known."""
        return self._footprints.knows(model, self._kind)

    @property
    def _kind(self) -> str:
        return self.cluster.devices[0].kind if self.cluster.devices else "cpu"

    def estimate(self, model: str, edges: int = 0) -> int:
        """MB that one instance of the model is expected to hold while it evaluates structures of up to ``edges`` pairs.

        One that was never measured gets what its family's largest holds, and never more than a device has: it is loaded into an
        empty one then, and measured.
        """
        kind = self._kind
        if self.measured(model):
            return self._need(model, kind, 0, edges)
        most = math.floor(self.cluster.most_mb(model))
        family = self._machine.family(model)
        kin = [mb for name, mb in self._footprints.measured(kind).items() if self._machine.family(name) == family]
        idle = max(kin) if kin else max(min(BASE_MB, most), 1)
        work = self._footprints.work_mb(model, kind, edges, self._machine.cost(model)) if edges else 0
        return max(idle, min(idle + work, most))

    def _need(self, model: str, kind: str, held: int, edges: int) -> int:
        most, cost = math.floor(self.cluster.most_mb(model)), self._machine.cost(model) if edges else None
        return self._footprints.need_mb(model, kind, held, most, edges, cost)

    def measure(self, life: Life) -> None:
        """Takes what the model holds now into its footprint and into the plan."""
        # While an instance comes or goes nobody can tell what each of them holds; the plan has the estimate.
        if not life.device or life.scaling or life.residency.state not in ("resident", "leaving"):
            return
        life.held = {device.id: self._machine.held_mb(life.model, device) for device in self._on(life)}
        # A copy that takes another one's place is beside it for a while, and says nothing of what one of them holds.
        whole = self._machine.processes(life.model) == sum(life.instances.values())
        for device in self._on(life):
            count, held = life.instances[device.id], life.held[device.id]
            each = math.ceil(held / count)
            known = self._footprints.of(life.model, device.kind)
            if whole and each > known.base_mb * GROWTH:
                self._footprints.measured_base(life.model, device.kind, each)
            if held:
                # It will come to hold again what it held before.
                at = self.cluster.position[device.id]
                self.cluster.measured_base(life.model, at, count * self._need(life.model, device.kind, each, life.edges))

    def govern(self, policy: Policy) -> None:
        """Other rules hold from now on; nothing is loaded or unloaded for that alone."""
        self.policy = policy
        self.cluster.govern(policy)

    def working(self, edges: Mapping[str, int]) -> None:
        """These are evaluating structures of so many pairs, or have them in a queue: the room for them stays."""
        for model, pairs in edges.items():
            # Larger ones were asked for beside models that left them no room.
            if (life := self.life(model)).residency.state == "resident" and pairs <= life.edges:
                life.asked_for(pairs, self.clock())

    def peak(self, model: str, edges: int, mb: float, cost: Cost | None) -> None:
        """A pass over so many neighbour pairs took so much above the loaded model."""
        if (at := self.cluster.position.get(self.life(model).device)) is not None:
            self._footprints.measured_peak(model, self.cluster.devices[at].kind, edges, mb, cost)
