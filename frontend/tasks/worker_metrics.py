"""A worker in numbers, for Prometheus, at a port of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server

from forcegate.errors import SetupError
from frontend.settings import PREFIX, Settings

if TYPE_CHECKING:
    from frontend.tasks.attempt import Attempt


class WorkerMetrics:
    """Gauges of one worker.

    Args:
        running: gives the attempts that are being carried out.
    """

    def __init__(self, slots: int, running: Callable[[], Sequence[Attempt]]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._running = running
        name = "forcegate_worker_"
        self._slots = Gauge(f"{name}slots", "Tasks that the worker carries out at once.", registry=self.registry)
        self._tasks = Gauge(f"{name}tasks", "Tasks that it carries out now.", registry=self.registry)
        self._silent = Gauge(
            f"{name}silent_seconds",
            "Time since the running task that has told nothing for longest was last heard of.",
            registry=self.registry,
        )
        self.beat = Gauge(
            f"{name}beat_timestamp_seconds", "When the database last had a sign of life of it.", registry=self.registry
        )
        self._slots.set(slots)
        # Asked for when somebody reads, so that a worker whose threads hang tells the truth.
        self._tasks.set_function(lambda: len(running()))
        self._silent.set_function(self._longest)

    def _longest(self) -> float:
        now = time.monotonic()
        return max((now - attempt.heard for attempt in self._running()), default=0.0)


@contextmanager
def exported(settings: Settings, metrics: WorkerMetrics) -> Iterator[None]:
    """Answers Prometheus while the block runs, where the settings name a port.

    Raises:
        SetupError: the port cannot be opened.
    """
    if not settings.worker_metrics_port:
        yield
        return
    try:
        server, thread = start_http_server(settings.worker_metrics_port, settings.internal_host, metrics.registry)
    except OSError as error:
        where = f"{settings.worker_metrics_port} on {settings.internal_host}"
        raise SetupError(
            f"Port {where} (worker_metrics_port) cannot be used: {error.strerror}.",
            f"End the program that has it, or set {PREFIX}WORKER_METRICS_PORT to another port.",
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
