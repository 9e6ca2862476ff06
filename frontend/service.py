"""The parts of one gateway, and how they start and stop."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar, cast

from starlette.requests import Request
from starlette.types import Scope

from forcefields import catalogue
from forcefields.cost import Cost, largest_edges
from forcegate.errors import ForcegateError, OutOfMemory
from forcegate.structure import Structure
from frontend.admission import Admission, Estimator, ModelQueue
from frontend.decoder import MEMORY, Decoder
from frontend.requests import Limits
from frontend.scheduler.follower import Follower
from frontend.scheduler.remote import RemoteDevices
from frontend.security.access import Gatekeeper
from frontend.security.keys import KeyStore
from frontend.security.limits import KeyLimits
from frontend.security.listening import keys_needed
from frontend.settings import Settings
from frontend.structures.store import StructureStore
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Tasks
from frontend.telemetry import Call, Metrics
from frontend.tracing import Tracing
from frontend.triton import restriction
from frontend.triton.client import Evaluator
from frontend.triton.control import TritonControl
from frontend.triton.directory import LOADABLE, LOADING, MISSING, READY, Directory, Entry

BODIES = 4
"""Bodies of the largest size that may be held in memory at once, by all gateways; one by each in any case."""
FIRST_POLL_SECONDS = 3.0
TASKS_SECONDS = 5.0
"""How often the queue of tasks is counted for the metrics."""

MEMORY_SECONDS = 30.0
"""How long a request whose structure did not fit waits at most for more room."""

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class Service:
    """Everything that the routes work with. ``evaluator`` and ``directory`` are there from ``running`` on, and so is ``tasks``."""

    directory: Directory
    evaluator: Evaluator
    tasks: Tasks

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.residency = Follower(settings.state, "gateway")
        self.residency.waiting = self._waiting
        self.remote = RemoteDevices(settings)
        self.metrics = Metrics(lambda: self.residency.state)
        self.tracing = (
            Tracing(settings.traces_url, "gateway", settings.traces_ratio, settings.traces_ca) if settings.traces else None
        )
        self.body_limit = settings.max_body_mb * 2**20
        self.admission = Admission(
            settings.structures_per_gateway,
            max(1, BODIES // settings.gateways) * self.body_limit,
            self.metrics.structures_in_flight.set,
            self._count_refusal,
        )
        self._queues: dict[str, ModelQueue] = {}
        self._estimators: dict[str, tuple[Cost | None, Estimator]] = {}
        limits = Limits(max_batch=settings.max_batch, max_atoms=settings.max_atoms)
        self.decoder = Decoder(limits, memory=max(MEMORY, 64 * self.body_limit))
        self.structures = StructureStore(settings)
        self.limits = KeyLimits(settings)
        self.gatekeeper = Gatekeeper(KeyStore(settings), settings.metrics_open) if keys_needed(settings) else None
        self.references: dict[tuple[str, str, int], float] = {}
        """Energies of isolated atoms, eV, by checkpoint with its dtype, head and atomic number; they never change."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the connections and keeps the directory current while the block runs."""
        settings = self.settings
        control = TritonControl(settings.grpc_address, restriction.key_of(settings))
        # Families from elsewhere have their entries in the state folder.
        repositories = (settings.repository, settings.state / "model_repository")
        self.directory = Directory(control, catalogue.load(), repositories, settings.state)
        self.directory.on_poll = self.observe
        self.directory.on_demand = settings.scheduler == "on"
        following = asyncio.create_task(self.residency.run())
        self.evaluator = Evaluator(settings.grpc_address, self.directory, self.metrics)
        polling = asyncio.create_task(self.directory.run())
        warming = asyncio.create_task(self.decoder.warm())
        tasks = self.tasks = DurableTasks(settings)
        remote = asyncio.create_task(self.remote.run(self.residency))
        background = [polling, warming, following, remote, asyncio.create_task(self._watch_tasks(tasks))]
        if self.gatekeeper is not None:
            background.append(asyncio.create_task(self.gatekeeper.run()))
        try:
            # A gateway that is started beside a running server knows its models from the first request on.
            with suppress(TimeoutError):
                await asyncio.wait_for(self.directory.first_poll(), FIRST_POLL_SECONDS)
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            if self.gatekeeper is not None:
                await self.gatekeeper.close()
            await tasks.close()
            await self.structures.close()
            await self.decoder.close()
            await self.directory.close()
            await self.evaluator.close()
            await control.close()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    async def admit(self, scope: Scope, call: Call) -> None:
        """Lets a request in by its key; see ``Gatekeeper.admit`` and ``KeyLimits.request``."""
        assert self.gatekeeper is not None
        await self.gatekeeper.admit(scope, call)
        if call.key is not None:
            self.limits.request(call.key)

    @contextmanager
    def hold(self, structures: int, call: Call) -> Iterator[None]:
        """Counts structures as in flight, of the request's key and of the gateway, while the block runs.

        Raises:
            Overloaded, InvalidRequest: see ``KeyLimits.hold`` and ``Admission.hold``.
        """
        with self.limits.hold(call.key, structures), self.admission.hold(structures):
            yield

    @asynccontextmanager
    async def using(self, models: Sequence[str], call: Call, structures: Sequence[Structure] = ()) -> AsyncIterator[None]:
        """The named models stay loaded while the block runs; with the scheduler on, those that are not loaded are waited for.

        Args:
            structures: what they are asked; there is memory for the largest of them.

        Raises:
            ModelNotReady: the deadline comes first.
            NoRoom, and what a failed load ended with.
        """
        directory = self.directory
        if not directory.on_demand or any(directory.entry(model).state == MISSING for model in models):
            yield  # what is missing has its error in the directory
            return
        variants = [directory.entry(model).variant for model in models]
        edges = {each.name: largest_edges(structures, each.cutoff) for each in variants}
        async with self.residency.hold([variant.name for variant in variants], call.deadline, edges=edges):
            if any(directory.entry(model).state != READY for model in models):
                await directory.poll()  # it has become ready since the last one
            yield

    async def with_memory(self, model: str, call: Call, work: Callable[[], Awaitable[Found]]) -> Found:
        """What ``work`` gives. Where it ran out of memory, the scheduler makes room for the model, and it is done once more.

        Raises:
            OutOfMemory: it still does not fit, or there is no scheduler.
            ForcegateError: what else ``work`` raises.
        """
        try:
            return await work()
        except OutOfMemory:
            if not await self.make_room(model, call):
                raise
        return await work()

    async def make_room(self, model: str, call: Call) -> bool:
        """Asks the scheduler for more memory for a model that ran out of it. False where there is none: a new try is in vain."""
        if not (self.directory.on_demand and self.residency.connected):
            return False
        name = self.directory.entry(model).variant.name
        with suppress(ForcegateError):  # it is tried in any case
            await self.residency.do("out of memory", min(MEMORY_SECONDS, call.remaining / 2), model=name)
        self.metrics.retries.labels(name, OutOfMemory.code).inc()
        return True

    def usable(self, entry: Entry) -> bool:
        """Whether a request that names the model is answered, after a load where the scheduler makes it."""
        directory = self.directory
        by_load = directory.on_demand and directory.reachable and self.residency.connected
        return entry.state == READY or (by_load and entry.state in (LOADABLE, LOADING))

    def queue(self, model: str) -> ModelQueue:
        """The queue in front of a model, by its canonical name."""
        if (queue := self._queues.get(model)) is None:
            queue = self._queues[model] = ModelQueue(
                self.settings.max_queue_seconds,
                self.estimator(model).pass_atoms,
                on_refusal=self._count_refusal,
                on_wait=lambda kind, seconds: self.metrics.queue_wait.labels(kind).observe(seconds),
            )
        return queue

    def _waiting(self) -> dict[str, float]:
        """Seconds of work that waits here, by model."""
        waits = {model: queue.load(False).seconds + queue.load(True).seconds for model, queue in self._queues.items()}
        return {model: seconds for model, seconds in waits.items() if seconds > 0}

    def estimator(self, model: str) -> Estimator:
        """What work costs on a model, by its newest calibration."""
        entry = self.directory.entry(model)
        known = self._estimators.get(model)
        if known is None or known[0] is not entry.report.cost:
            variant = entry.variant
            known = self._estimators[model] = (
                entry.report.cost,
                Estimator(entry.report.cost, variant.cutoff, variant.packing.atoms),
            )
        return known[1]

    def observe(self, directory: Directory | None = None) -> None:
        """Sets the metrics of what is, as opposed to what happens."""
        with suppress(OSError):
            disk = shutil.disk_usage(self.settings.state)
            self.metrics.state_free.set(disk.free)
            self.metrics.state_size.set(disk.total)
        for entry in (directory or self.directory).entries():
            self.metrics.model_ready.labels(entry.variant.name).set(entry.state == READY)
        told = (self.residency.state or {}).get("models", {})
        for model, queue in self._queues.items():
            queue.instances = max(1, sum(told.get(model, {}).get("instances", {}).values()))
            self.metrics.cost_correction.labels(model).set(queue.correction.factor)
            for kind, bulk in (("interactive", False), ("bulk", True)):
                load = queue.load(bulk)
                self.metrics.queue_structures.labels(model, kind).set(load.structures)
                self.metrics.queue_seconds.labels(model, kind).set(load.seconds)

    async def _watch_tasks(self, tasks: DurableTasks) -> None:
        """Opens the database of the tasks, and keeps the metrics of the queue current, until it is cancelled."""
        while True:
            try:
                self.metrics.tasks.observe(await tasks.figures())
            except ForcegateError as error:
                log.warning("tasks are not available", extra={"detail": error.detail})
            await asyncio.sleep(TASKS_SECONDS)

    def _count_refusal(self, reason: str) -> None:
        self.metrics.refused.labels(reason).inc()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    return cast(Service, request.app.state.service)


def call_of(request: Request) -> Call:
    """What is known of a request; the middleware made it."""
    return cast(Call, request.scope["forcegate.call"])
