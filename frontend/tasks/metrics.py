"""The queue of tasks in numbers, for Prometheus. They come from the database, so that every gateway tells the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge

if TYPE_CHECKING:
    from frontend.tasks.order import Figures


class TaskMetrics:
    """Gauges of the queue in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queued = Gauge("forcegate_tasks_queued", "Tasks that wait.", ("priority",), registry=registry)
        self._by_status = Gauge("forcegate_tasks_status", "Tasks that are kept, by their status.", ("status",), registry=registry)
        self._running = Gauge("forcegate_tasks_running", "Tasks that are carried out.", registry=registry)
        self._wait = Gauge("forcegate_tasks_wait_seconds", "Time that the oldest task in the queue has waited.", registry=registry)
        self._slots = Gauge("forcegate_tasks_slots", "Tasks that the living workers carry out at once.", registry=registry)
        self._workers = Gauge("forcegate_tasks_workers", "Workers that live.", registry=registry)

    def observe(self, figures: Figures) -> None:
        """Sets all of them."""
        for priority, count in figures.queued.items():
            self._queued.labels(priority).set(count)
        for status, count in figures.by_status.items():
            self._by_status.labels(status).set(count)
            if status == "RUNNING":
                self._running.set(count)
        self._wait.set(figures.oldest_seconds)
        self._slots.set(figures.slots)
        self._workers.set(figures.workers)
