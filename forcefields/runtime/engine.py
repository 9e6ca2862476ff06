"""The runtime without Triton: structures in, results or typed errors out.

``model.py`` puts Triton's tensors around it; the readiness gate, the tests and the benchmarks call it directly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from forcefields.base import ForceField
from forcefields.catalogue import Variant
from forcefields.neighbours import neighbours
from forcefields.runtime import physics
from forcefields.runtime.batch import Job, Tally, evaluate_pack, pack
from forcefields.runtime.journal import Journal
from forcegate.errors import EvaluationFailed, ForcegateError
from forcegate.structure import Structure

log = logging.getLogger(__name__)

DEFAULT_OUTPUTS = frozenset({"energy", "forces", "stress"})


@dataclass
class Report:
    """What one call of ``Engine.run`` did."""

    structures: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    atoms: int = 0
    edges: int = 0
    graph_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)


class Engine:
    """One loaded force field behind the checks that every family shares.

    Args:
        limits: the largest structure that is taken.
        journal: remembers over a death of this process what it was evaluating; none where nobody would start it again.
        watchdog: makes a context around a step over that many atoms.
    """

    def __init__(
        self,
        force_field: ForceField,
        variant: Variant,
        limits: physics.Limits,
        journal: Journal | None = None,
        watchdog: Callable[[int], AbstractContextManager[None]] = lambda _atoms: nullcontext(),
    ) -> None:
        self.force_field = force_field
        self.variant = variant
        self.limits = limits
        self.journal = journal
        self._watchdog = watchdog

    def evaluate(self, structures: Sequence[Structure], head: str = "", outputs: frozenset[str] = DEFAULT_OUTPUTS) -> list[Job]:
        """Evaluates structures together; each returned job has its result or its error."""
        jobs = [Job(structure, head, outputs) for structure in structures]
        self.run(jobs)
        return jobs

    def run(self, jobs: Sequence[Job]) -> Report:
        """Validates, normalises, packs, evaluates and checks; each job ends with its result or its own error."""
        report = Report(structures=len(jobs))
        started = time.perf_counter()
        for job in jobs:
            self._guarded(job, self._admit)
        admitted = [job for job in jobs if job.error is None]
        for group in [[job for job in admitted if not job.alone], *([job] for job in admitted if job.alone)]:
            with self._guard(group, acquit=False):
                for job in group:
                    self._guarded(job, self._build)
        report.graph_seconds = time.perf_counter() - started
        ready = [job for job in jobs if job.graph is not None]
        report.atoms = sum(job.graph.atoms for job in ready if job.graph)
        report.edges = sum(job.graph.edges for job in ready if job.graph)
        started = time.perf_counter()
        for packed in pack(ready, self.variant.packing.atoms, self.limits.edges):
            evaluate_pack(self.force_field, packed, report.tally, self._guard)
            for job in packed:
                job.graph = None
                self._guarded(job, self._finish)
        report.evaluation_seconds = time.perf_counter() - started
        for job in jobs:
            if job.error is not None:
                report.rejected[job.error.code] = report.rejected.get(job.error.code, 0) + 1
        return report

    @contextmanager
    def _guard(self, jobs: Sequence[Job], acquit: bool = True) -> Iterator[None]:
        atoms = sum(len(job.structure) for job in jobs)
        recorded = [(job.structure, job.head) for job in jobs]
        with self.journal.during(recorded, acquit) if self.journal else nullcontext(), self._watchdog(atoms):
            yield

    def _admit(self, job: Job) -> None:
        """The checks that need no more than a look; a structure that has killed this model goes on alone, or not at all."""
        job.head = physics.validate(job.structure, job.head, self.variant, self.limits)
        if self.journal is not None and not self.journal.empty:
            self._judge(job, self.journal)

    def _build(self, job: Job) -> None:
        normalised = physics.normalise(job.structure, self.force_field.cutoff)
        cutoff = self.force_field.cutoff
        physics.check_size(normalised, cutoff, self.limits)
        found = neighbours(normalised, cutoff) if self.force_field.reads_neighbours else None
        physics.check_distances(normalised, found)
        if found is not None:
            physics.check_edges(len(normalised), len(found.first), self.limits)
        graph = self.force_field.graph(normalised, job.head)
        physics.check_edges(graph.atoms, graph.edges, self.limits)
        job.graph = graph

    def _judge(self, job: Job, journal: Journal) -> None:
        if journal.condemned(job.structure, job.head):
            raise EvaluationFailed(
                f"The process of {self.variant.name} died twice while it evaluated this structure alone, so it is not tried again.",
                "Check its size, its distances and its cell; the model's log tells more.",
            )
        job.alone = journal.suspected(job.structure, job.head)

    def _finish(self, job: Job) -> None:
        if job.result is not None:
            job.result = physics.finish(job.result, job.structure)

    def _guarded(self, job: Job, step: Callable[[Job], None]) -> None:
        """Runs one step of one job; what it raises becomes this job's error."""
        try:
            step(job)
        except ForcegateError as error:
            job.result, job.error = None, error
        except Exception as error:  # one structure's failure, whatever it is, must stay its own
            log.warning("structure failed", exc_info=error, extra={"request_id": job.request_id})
            job.result = None
            job.error = EvaluationFailed(f"The structure could not be prepared: {type(error).__name__}: {str(error)[:300]}")
