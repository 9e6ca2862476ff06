"""What a model process tells Prometheus, through Triton's own metrics endpoint, and the log.

Each number that is told crosses to the server and back, a tenth of a millisecond, so it is done in a thread, behind the answers;
and what is only added up is told in sums.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from forcefields.runtime.engine import Report

log = logging.getLogger(__name__)

_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_ATOMS = [1, 8, 32, 128, 512, 2_048, 8_192, 32_768]
_SUMS = {
    "atoms": ("forcegate_atoms", "Atoms of the structures that were evaluated"),
    "edges": ("forcegate_edges", "Directed neighbour pairs of the structures that were evaluated"),
    "evaluation_seconds": ("forcegate_evaluation_seconds", "Seconds of evaluation"),
    "graph_seconds": (
        "forcegate_graph_seconds",
        "Seconds of checking and graph building, some of them during evaluations on a GPU",
    ),
}
"""Counters, name and description, by the attribute of ``Report`` that they add up."""


class Metrics:
    """Counters and histograms of one model."""

    def __init__(self, model: str, pb_utils: Any) -> None:
        self._labels = {"model": model}
        self._pb = pb_utils
        # A family that is dropped takes its metrics with it, so they are kept.
        self._families: list[Any] = []
        self._structures = self._histogram("forcegate_batch_structures", "Structures in one call of the model", _SIZES)
        self._pass_atoms = self._histogram("forcegate_pass_atoms", "Atoms in one forward pass", _ATOMS)
        self._sums = {attribute: self._counter(*told) for attribute, told in _SUMS.items()}
        self._memory = self._counter("forcegate_out_of_memory", "Forward passes that ran out of memory and were halved")
        self._bisections = self._counter("forcegate_bisections", "Forward passes that failed and were halved")
        self._rejected_family = self._family("forcegate_rejected", "Structures answered by an error, by its code", "COUNTER")
        self._rejected: dict[str, Any] = {}

    def observe(self, reports: Sequence[Report]) -> None:
        """Adds some calls of the engine."""
        for report in reports:
            self._structures.observe(report.structures)
            for atoms in report.tally.pass_atoms:
                self._pass_atoms.observe(atoms)
            for code, count in report.rejected.items():
                if code not in self._rejected:
                    self._rejected[code] = self._rejected_family.Metric(labels={**self._labels, "code": code})
                self._rejected[code].increment(count)
        for name, counter in self._sums.items():
            _add(counter, sum(getattr(report, name) for report in reports))
        _add(self._memory, sum(report.tally.out_of_memory for report in reports))
        _add(self._bisections, sum(report.tally.bisections for report in reports))

    def _family(self, name: str, description: str, kind: str) -> Any:
        family = self._pb.MetricFamily(name=name, description=description, kind=getattr(self._pb.MetricFamily, kind))
        self._families.append(family)
        return family

    def _counter(self, name: str, description: str) -> Any:
        return self._family(name, description, "COUNTER").Metric(labels=self._labels)

    def _histogram(self, name: str, description: str, buckets: Sequence[float]) -> Any:
        return self._family(name, description, "HISTOGRAM").Metric(labels=self._labels, buckets=list(buckets))


def _add(counter: Any, amount: float) -> None:
    if amount:
        counter.increment(amount)


class Teller:
    """A thread that tells of calls after they have been answered.

    Args:
        observers: given the reports that have come since it was last called.
        note: writes the log line of one call, given its report and the ids of its requests.
    """

    def __init__(
        self, observers: Sequence[Callable[[Sequence[Report]], None]], note: Callable[[Report, Sequence[str]], None]
    ) -> None:
        self._observers, self._note = observers, note
        self._told: SimpleQueue[tuple[Report, Sequence[str]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
        self._thread.start()

    def tell(self, report: Report, request_ids: Sequence[str]) -> None:
        """Leaves a call to the thread."""
        self._told.put((report, request_ids))

    def close(self) -> None:
        """Returns when all has been told."""
        self._told.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        while True:
            calls = [self._told.get()]
            try:
                while True:
                    calls.append(self._told.get_nowait())
            except Empty:
                pass
            known = [call for call in calls if call is not None]
            try:
                for observe in self._observers:
                    observe([report for report, _ in known])
                for report, request_ids in known:
                    self._note(report, request_ids)
            except Exception:  # a metric that cannot be counted must not end the thread
                log.exception("the metrics could not be updated")
            if len(known) < len(calls):
                return
