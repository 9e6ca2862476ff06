"""The service: tritonserver, the models that it serves, and the gateways, kept alive until it is told to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue, Variant
from forcegate.errors import ForcegateError, GateFailed, SetupError
from frontend.settings import Settings
from frontend.supervisor import triton
from frontend.supervisor.gateways import Gateways, child_environment
from frontend.supervisor.process import ChildProcess, keep_short
from frontend.supervisor.residents import Residents
from frontend.supervisor.watch import ModelWatch
from frontend.triton import canary, restriction
from frontend.triton.control import TritonControl
from frontend.triton.facts import Facts

log = logging.getLogger(__name__)

START_SECONDS = 120.0
"""Time that tritonserver or the gateway gets to answer: on a machine that is busy beyond its cores a gateway has taken 60 s."""
LIFE_SECONDS = 10.0
"""A process that ends sooner after its start counts as failing to start."""
ATTEMPTS = 5
"""Failed starts in a row after which the service gives up."""
LONGEST_PAUSE = 8
"""Failed starts in a row after which the pauses before the next one grow no more; it is 51 s then."""


@dataclass
class Loaded:
    """The outcome of loading one model, for the table at the start."""

    variant: Variant
    seconds: float
    error: ForcegateError | None
    report: dict[str, Any]


class Service:
    """Starts, watches and stops the processes.

    Args:
        foreign: repository of the families from elsewhere.
        say: told, in one line each, what a person at the terminal should know.
    """

    def __init__(self, settings: Settings, catalogue: Catalogue, foreign: Path, say: Callable[[str], None]) -> None:
        self._settings, self._foreign, self._say = settings, foreign, say
        logs = settings.state / "logs"
        to_file = settings.log_to == "files"
        self._triton = ChildProcess("tritonserver", logs / "triton.log", to_file)
        self._gateways = Gateways(settings, logs / "gateway.log")
        self._workers = [ChildProcess(f"worker {n}", logs / f"worker-{n}.log", to_file) for n in range(settings.workers)]
        self._control = TritonControl(settings.grpc_address, restriction.key_of(settings))
        self._watch = ModelWatch(
            self._control,
            lambda: self._triton.pid if self._triton.running else None,
            self._bring,
            lambda: triton.regions(settings),
            self._triton.kill,
        )
        self.residents = Residents(settings, catalogue, self._control, self._watch, partial(self._bring, dead=False))
        self._stopping = False
        self._renewing: asyncio.Task[None] | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set, with the reason, when the service cannot be kept alive."""

    async def start_triton(self) -> None:
        """Starts tritonserver and waits until it answers.

        Raises:
            SetupError: it ended, or did not answer in time; the end of its log is in the message.
        """
        # Regions of a server that was killed together with its supervisor; the ports are free, so nobody uses them.
        triton.clean_up(self._settings, [])
        await self._triton.start(triton.command(self._settings, self._foreign), triton.environment(self._settings))
        deadline = time.monotonic() + START_SECONDS
        while not await self._control.ready():
            if not self._triton.running or time.monotonic() > deadline:
                ended = "ended" if not self._triton.running else f"did not answer within {START_SECONDS:.0f} s"
                await self._triton.stop(5)
                raise SetupError(f"tritonserver {ended}.", f"The end of {self._triton.log}:\n{self._triton.tail()}")
            await asyncio.sleep(0.05)

    async def load(self, variant: Variant) -> Loaded:
        """Loads one model in the variant's dtype, runs its gate, and sends a canary. What fails is in the outcome."""
        started = time.monotonic()
        error: ForcegateError | None = None
        try:
            if self.residents.active:
                await self.residents.prewarm(variant.name, variant.dtype)
            else:
                await self._bring(variant.name, dead=False, dtype=variant.dtype)
        except ForcegateError as failure:
            error = failure
        if not self.residents.active and (error is None or error.retryable):
            self._watch.wanted[variant.name] = variant.dtype
        return Loaded(variant, time.monotonic() - started, error, self._report(variant))

    async def _bring(self, name: str, dead: bool, dtype: str) -> None:
        """Loads a model, or loads it again after a process of it has died, and sends a canary; one that fails it is not served.

        It comes as one instance, whatever there was before: while a new copy is loaded beside an old one there is memory for that.
        """
        catalogue = catalogues.load()
        variant = catalogue.resolve(name)
        variant = variant.with_dtype(dtype or variant.dtype)
        placement = self.residents.alone(name)
        if dead:
            load = self._control.reload(name, variant.dtype, placement=placement)
        else:
            repositories = (self._settings.repository, self._foreign)
            load = self._control.load_in(name, variant.dtype, repositories, placement=placement)
        await self._watch.launches.watched(name, load)
        self._watch.refresh()
        try:
            await canary.check(self._settings.grpc_address, catalogue, variant, self._settings.state)
        except GateFailed:
            await self._control.unload(name)
            raise

    async def start_scheduler(self) -> None:
        """Reads the devices; from now on the residents have their owner."""
        self._keep_going((await self.residents.start()).run())

    def _report(self, variant: Variant) -> dict[str, Any]:
        try:
            data = json.loads((self._settings.state / "reports" / f"{variant.name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    async def start_gateways(self) -> None:
        """Opens the port, starts the gateways and waits until they accept.

        Raises:
            SetupError: one of them ended, or was not ready in time.
        """
        await self._gateways.start(START_SECONDS)

    async def start_workers(self) -> None:
        """Starts the workers; nobody waits until they take tasks, which takes seconds."""
        for worker in self._workers:
            await self._start_worker(worker)

    async def _start_worker(self, worker: ChildProcess) -> None:
        settings = self._settings
        if settings.worker_metrics_port:
            port = settings.worker_metrics_port + self._workers.index(worker)
            settings = settings.model_copy(update={"worker_metrics_port": port})
        await worker.start([sys.executable, "-m", "frontend.tasks.worker"], child_environment(settings))

    def keep_alive(self) -> None:
        """From now on a process that ends is started again, and a model whose process dies is brought back."""
        self._keep_going(self._keep("tritonserver", self._triton, self._restart_triton))
        for gateway in self._gateways.processes:
            self._keep_going(self._keep(gateway.name, gateway, partial(self._gateways.start_one, gateway, START_SECONDS)))
        for worker in self._workers:
            self._keep_going(self._keep(worker.name, worker, partial(self._start_worker, worker), False))
        self._keep_going(self._watch.run())
        self._keep_going(self.residents.heartbeat.run())
        logs = [self._triton.log.with_name(f"{name}.log") for name in ("triton", "gateway", "supervisor")]
        self._keep_going(keep_short([*(worker.log for worker in self._workers), *logs]))

    def renew_soon(self) -> None:
        """Begins ``renew``, unless the service is still starting: it has read the catalogue a moment ago then, or stops."""
        if self._keepers and not self._stopping:
            self._renewing = asyncio.create_task(self.renew())

    async def renew(self) -> None:
        """Reads the catalogue anew: a model whose checkpoint is another now is loaded again, and serves until that one is ready.

        Gateways read the catalogue at their start, so they are started again, one after the other; the port stays open.
        """
        catalogue = self.residents.catalogue = catalogues.load()
        for name, dtype in list(self._watch.wanted.items()):
            try:
                config, known = await self._control.config(name), catalogue.variants.get(name)
                if known is None or Facts.from_config(name, config).checkpoint_sha256 == known.checkpoint.sha256:
                    continue
                await self._bring(name, dead=False, dtype=dtype)
                self._say(f"{name}: another checkpoint, {known.checkpoint.sha256[:12]}")
            except ForcegateError as error:
                self._say(f"{name}: {error}")
        for gateway in self._gateways.processes:
            before = gateway.pid
            await gateway.stop(self._settings.drain_seconds + 5)
            while not self._stopping and (gateway.pid == before or not gateway.running):  # noqa: ASYNC110
                await asyncio.sleep(0.1)  # its keeper starts it

    def _keep_going(self, work: Coroutine[Any, Any, None]) -> None:
        keeper = asyncio.create_task(work)
        keeper.add_done_callback(self._keeper_ended)
        self._keepers.append(keeper)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        """A service that nobody watches any more has to stop, and to say why."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        log.error("a keeper ended", exc_info=error)
        if not self.failed.done():
            self.failed.set_result(f"The supervisor failed: {type(error).__name__}: {error}")

    async def _keep(self, name: str, process: ChildProcess, restart: Callable[[], Any], vital: bool = True) -> None:
        """Starts a process again whenever it ends. One that is not vital is given up never, and ends nothing else."""
        failures = 0
        while not self._stopping:
            started = time.monotonic()
            status = await process.wait() if process.running else -1
            if self._stopping:
                return
            failures = failures + 1 if time.monotonic() - started < LIFE_SECONDS else 0
            self._say(f"{name} ended with status {status}; starting it again")
            log.error("process ended", extra={"name_": name, "status": status, "failures": failures})
            if failures >= ATTEMPTS and vital:
                if not self.failed.done():
                    self.failed.set_result(f"{name} ended {failures} times in a row; see {process.log}.")
                return
            await asyncio.sleep(0.2 * 2 ** min(failures, LONGEST_PAUSE) - 0.2)
            try:
                await restart()
            except (SetupError, OSError, psutil.Error) as error:
                log.error("restart failed", extra={"name_": name, "detail": str(error)})
                continue
            self._say(f"{name} is back after {time.monotonic() - started:.1f} s" if failures else f"{name} is back")

    async def _restart_triton(self) -> None:
        self._watch.launches.look([])
        left = triton.clean_up(self._settings, self._watch.processes)
        log.warning("cleaned up after tritonserver", extra={"left": left})
        await self.start_triton()
        # The watch sees that nothing is loaded, and loads what should be.

    async def stop(self) -> None:
        """Stops the gateways first, then tritonserver: requests in flight finish. Nothing is left behind."""
        self._stopping = True
        for task in self._keepers:
            task.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        # Tasks go back into the queue with their last state, which needs no gateway.
        patience = self._settings.drain_seconds + 5
        await asyncio.gather(self._gateways.stop(patience), *(worker.stop(patience) for worker in self._workers))
        await self._watch.close()
        processes = triton.model_processes(self._triton.pid) if self._triton.running else self._watch.processes
        await self._triton.stop(self._settings.drain_seconds + 5)
        triton.clean_up(self._settings, processes)
        await self._control.close()
