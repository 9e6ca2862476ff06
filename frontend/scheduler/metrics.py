"""The scheduler's numbers as Prometheus metrics, from what its owner told last: every gateway tells the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from frontend.scheduler.policy import PRIORITIES

State = Callable[[], Mapping[str, Any] | None]


class SchedulerMetrics(Collector):
    """See the module. Without a state there are names without numbers."""

    def __init__(self, state: State = lambda: None) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        state = self._state() or {}
        stats = state.get("stats", {})
        yield from _devices(state.get("devices", ()))
        yield from _models(state.get("models", {}))
        yield from _queue(state)
        yield _counter("decisions", "Placement decisions, by what was decided.", "action", stats.get("decisions", {}))
        yield _counter("loads", "Loads that ended well.", "model", stats.get("loads", {}))
        yield _counter("load_failures", "Loads that failed, by the code of their error.", "code", stats.get("failures", {}))
        yield _counter("evictions", "Models that were unloaded, by reason.", "reason", stats.get("evictions", {}))
        yield _scalings(stats.get("scalings", {}))
        yield _counter("out_of_memory", "Calls of a model that ran out of memory.", "model", stats.get("out_of_memory", {}))
        none = {device["id"]: 0 for device in state.get("devices", ())}
        yield _counter("device_faults", "Faults that may be a device's.", "device", none | stats.get("faults", {}))
        yield from _heartbeat(stats.get("heartbeat", {}))
        for name, text in (
            ("not_given_back", "Unloads after which a process kept its memory and was ended."),
            ("quarantines", "Devices that were put into quarantine after faults."),
        ):
            family = CounterMetricFamily(f"forcegate_scheduler_{name}", text)
            if stats:
                family.add_metric((), stats[name])
            yield family
        only: dict[tuple[str, ...], Any] = {(): stats["load_seconds"]} if stats else {}
        yield _histogram("load_seconds", "Time that a load took.", (), only)
        waits: dict[tuple[str, ...], Any] = {(str(name),): each for name, each in stats.get("wait_seconds", {}).items()}
        yield _histogram("wait_seconds", "Time that callers waited for a model.", ("priority",), waits)


def _devices(devices: Any) -> Iterator[Metric]:
    memory = GaugeMetricFamily("forcegate_device_memory_mb", "Memory of a device.", labels=("device", "of"))
    utilization = GaugeMetricFamily("forcegate_device_utilization", "Percent of the time that it computes.", labels=("device",))
    temperature = GaugeMetricFamily("forcegate_device_temperature", "Degrees Celsius.", labels=("device",))
    serving = GaugeMetricFamily("forcegate_device_serving", "1 for a device that takes models.", labels=("device",))
    in_flight = GaugeMetricFamily("forcegate_device_work", "Requests and calls of tasks with its models.", labels=("device",))
    for device in devices:
        for of in ("total", "used", "planned", "models"):
            memory.add_metric((device["id"], of), device[f"memory_{of}_mb"])
        for family, value in ((utilization, device["utilization"]), (temperature, device["temperature"])):
            if value is not None:
                family.add_metric((device["id"],), value)
        serving.add_metric((device["id"],), float(not device["fault"]))
        in_flight.add_metric((device["id"],), device["in_flight"])
    yield from (memory, utilization, temperature, serving, in_flight)


def _models(models: Mapping[str, Any]) -> Iterator[Metric]:
    memory = GaugeMetricFamily("forcegate_model_memory_mb", "Memory that a resident model holds.", labels=("model", "device"))
    replicas = GaugeMetricFamily("forcegate_scheduler_replicas", "Instances of a resident model.", labels=("model", "device"))
    for name, model in models.items():
        if model["memory_mb"]:
            memory.add_metric((name, model["device"] or ""), model["memory_mb"])
        if model["state"] == "resident":
            for device, count in model["instances"].items():
                replicas.add_metric((name, device), count)
    yield from (memory, replicas)


def _scalings(told: Mapping[str, float]) -> Metric:
    labels = ("direction", "reason")
    family = CounterMetricFamily("forcegate_scheduler_scalings", "Instances added and taken away, by reason.", labels=labels)
    for name, count in told.items():
        direction, _, reason = name.partition(" ")
        family.add_metric((direction, reason), count)
    return family


def _heartbeat(told: Mapping[str, Any]) -> Iterator[Metric]:
    for name, text in (
        ("canaries", "Known energies that a model was asked for."),
        ("deaths", "Models that gave no good answer, were ended and are loaded again."),
    ):
        family = CounterMetricFamily(f"forcegate_heartbeat_{name}", text, labels=("model",))
        for model, count in told.get(name, {}).items():
            family.add_metric((model,), count)
        yield family
    silent = GaugeMetricFamily("forcegate_model_silent_seconds", "Time since its last good answer.", labels=("model",))
    for model, seconds in told.get("silent_seconds", {}).items():
        silent.add_metric((model,), seconds)
    yield silent


def _queue(state: Mapping[str, Any]) -> Iterator[Metric]:
    family = GaugeMetricFamily("forcegate_scheduler_queue", "Callers that wait for a model.", labels=("priority",))
    waiting = Counter(str(ask["priority"]) for ask in state.get("queue", ()))
    for name in PRIORITIES if state else ():
        family.add_metric((name,), waiting[name])
    yield family


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"forcegate_scheduler_{name}", text, labels=(label,))
    for value, count in values.items():
        family.add_metric((value,), count)
    return family


def _histogram(name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Any]) -> Metric:
    family = HistogramMetricFamily(f"forcegate_scheduler_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, list(value["buckets"].items()), value["sum"])
    return family
