"""What Triton's metrics endpoint says about one model between two moments."""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx

COUNTERS = (
    "forcegate_batch_structures_count",
    "forcegate_batch_structures_sum",
    "forcegate_atoms",
    "forcegate_edges",
    "forcegate_pass_atoms_count",
    "forcegate_evaluation_seconds",
    "forcegate_graph_seconds",
)


@dataclass(frozen=True)
class Counters:
    """The values of ``COUNTERS`` of one model at one moment."""

    values: dict[str, float]

    def since(self, earlier: Counters) -> dict[str, float]:
        """How much each has grown."""
        return {name: value - earlier.values[name] for name, value in self.values.items()}


def read(url: str, model: str) -> Counters:
    """Reads the metrics of ``model`` from Triton's endpoint."""
    return parse(httpx.get(url, timeout=10).text, model)


def settled(url: str, model: str) -> Counters:
    """The same when two readings agree, for a batch is counted after it was answered; after a second, whatever is there."""
    found = read(url, model)
    for _ in range(20):
        time.sleep(0.05)
        before, found = found, read(url, model)
        if found == before:
            break
    return found


def parse(text: str, model: str) -> Counters:
    """The counters of ``model`` in Prometheus text; one that is not there is 0."""
    values = dict.fromkeys(COUNTERS, 0.0)
    for line in text.splitlines():
        series, _, value = line.rpartition(" ")
        name = series.partition("{")[0]
        if name in values and f'model="{model}"' in series:
            values[name] += float(value)
    return Counters(values)


def summary(grown: dict[str, float], seconds: float) -> dict[str, float]:
    """Where the time of a run of ``seconds`` went, as shares, and how large batches and forward passes were."""
    calls, passes = grown["forcegate_batch_structures_count"], grown["forcegate_pass_atoms_count"]
    evaluation, graphs = grown["forcegate_evaluation_seconds"], grown["forcegate_graph_seconds"]
    return {
        "mean_batch_structures": grown["forcegate_batch_structures_sum"] / calls if calls else 0.0,
        "edges_per_second": grown["forcegate_edges"] / seconds,
        "mean_pass_atoms": grown["forcegate_atoms"] / passes if passes else 0.0,
        "share_evaluation": evaluation / seconds,
        "share_checks_and_graphs": graphs / seconds,
        "share_elsewhere": 1 - (evaluation + graphs) / seconds,
    }
