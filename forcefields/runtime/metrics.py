"""What a model process tells Prometheus, through Triton's own metrics endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forcefields.runtime.engine import Report

_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_ATOMS = [1, 8, 32, 128, 512, 2_048, 8_192, 32_768]
_EDGES = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000]
_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


class Metrics:
    """Counters and histograms of one model."""

    def __init__(self, model: str, pb_utils: Any) -> None:
        self._labels = {"model": model}
        self._pb = pb_utils
        # A family that is dropped takes its metrics with it, so they are kept.
        self._families: list[Any] = []
        self._structures = self._histogram("forcegate_batch_structures", "Structures in one call of the model", _SIZES)
        self._atoms = self._histogram("forcegate_batch_atoms", "Atoms in one call of the model", _ATOMS)
        self._edges = self._histogram("forcegate_batch_edges", "Neighbour pairs in one call of the model", _EDGES)
        self._pass_atoms = self._histogram("forcegate_pass_atoms", "Atoms in one forward pass", _ATOMS)
        self._evaluation = self._histogram("forcegate_evaluation_seconds", "Seconds of evaluation in one call", _SECONDS)
        self._graph = self._histogram("forcegate_graph_seconds", "Seconds of checking and graph building in one call", _SECONDS)
        self._memory = self._counter("forcegate_out_of_memory", "Forward passes that ran out of memory and were halved")
        self._bisections = self._counter("forcegate_bisections", "Forward passes that failed and were halved")
        self._rejected_family = self._family("forcegate_rejected", "Structures answered by an error, by its code", "COUNTER")
        self._rejected: dict[str, Any] = {}

    def observe(self, report: Report) -> None:
        """Adds one call of the engine."""
        for histogram, value in (
            (self._structures, report.structures),
            (self._atoms, report.atoms),
            (self._edges, report.edges),
            (self._evaluation, report.evaluation_seconds),
            (self._graph, report.graph_seconds),
        ):
            histogram.observe(value)
        for atoms in report.tally.pass_atoms:
            self._pass_atoms.observe(atoms)
        # Every call crosses to the server and back, a tenth of a millisecond: nothing is told that has not happened.
        if report.tally.out_of_memory:
            self._memory.increment(report.tally.out_of_memory)
        if report.tally.bisections:
            self._bisections.increment(report.tally.bisections)
        for code, count in report.rejected.items():
            if code not in self._rejected:
                self._rejected[code] = self._rejected_family.Metric(labels={**self._labels, "code": code})
            self._rejected[code].increment(count)

    def _family(self, name: str, description: str, kind: str) -> Any:
        family = self._pb.MetricFamily(name=name, description=description, kind=getattr(self._pb.MetricFamily, kind))
        self._families.append(family)
        return family

    def _counter(self, name: str, description: str) -> Any:
        return self._family(name, description, "COUNTER").Metric(labels=self._labels)

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Any:
        return self._family(name, description, "HISTOGRAM").Metric(labels=self._labels, buckets=list(buckets))
