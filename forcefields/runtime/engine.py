"""The runtime without Triton: structures in, results or typed errors out.

``model.py`` puts Triton's tensors around it; the readiness gate, the tests and the benchmarks call it directly.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from forcefields.base import ForceField, Normalised
from forcefields.catalogue import Variant
from forcefields.cost import estimated_edges
from forcefields.neighbours import Neighbours, neighbours
from forcefields.runtime import physics
from forcefields.runtime.batch import Job, PassSize, Tally, evaluate_pack, fill, pack
from forcefields.runtime.journal import Journal
from forcegate.errors import Cancelled, EvaluationFailed, ForcegateError
from forcegate.structure import Structure

log = logging.getLogger(__name__)

DEFAULT_OUTPUTS = frozenset({"energy", "forces", "stress"})
SHRINK, GROW = 0.8, 1.02
"""A pass that ran out of memory lowers what one may hold to this part of it; each later one that fits raises it again a little, up
to the limit of the start: who else took the memory may have given it back."""
FILLED = 8
"""Full passes whose structures are shared out among passes of the sizes that a family pads to."""
ASK_SECONDS = 0.5
"""How often it is looked, during a long call, whether callers have gone away."""


@dataclass
class Report:
    """What one call of ``Engine.run`` did."""

    structures: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    atoms: int = 0
    edges: int = 0
    graph_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    seconds: float = 0.0
    peak_mb: float = 0.0
    """MB of memory at the peak, above the loaded model; 0 where nobody has measured it."""
    tally: Tally = field(default_factory=Tally)


class Engine:
    """One loaded force field behind the checks that every family shares.

    Args:
        limits: the largest structure that is taken. ``size`` says when a pass is full; a calibration may set another.
        journal: remembers over a death of this process what it was evaluating; none where nobody would start it again.
        watchdog: makes a context around a step over that many atoms.
        ahead: build the graphs of the next pass in a thread while the device computes this one.
        lists: makes the neighbour list of a structure, and keeps it there.
    """

    def __init__(
        self,
        force_field: ForceField,
        variant: Variant,
        limits: physics.Limits,
        journal: Journal | None = None,
        watchdog: Callable[[int], AbstractContextManager[None]] = lambda _atoms: nullcontext(),
        ahead: bool = False,
        lists: Callable[[Normalised, float], Neighbours] = neighbours,
    ) -> None:
        self.force_field = force_field
        self.variant = variant
        self.limits = limits
        self.size = PassSize(variant.packing.atoms, edges=limits.edges)
        self.journal = journal
        self.fitted = 0
        """Directed neighbour pairs of the largest pass that was evaluated."""
        self._watchdog, self._lists = watchdog, lists
        self._builder = ThreadPoolExecutor(1, "graphs") if ahead else None

    def evaluate(self, structures: Sequence[Structure], head: str = "", outputs: frozenset[str] = DEFAULT_OUTPUTS) -> list[Job]:
        """Evaluates structures together; each returned job has its result or its error."""
        jobs = [Job(structure, head, outputs) for structure in structures]
        self.run(jobs)
        return jobs

    def run(self, jobs: Sequence[Job]) -> Report:
        """Validates, normalises, packs, evaluates and checks; each job ends with its result or its own error."""
        report = Report(structures=len(jobs), tally=Tally(fitted=self.fitted))
        started = time.perf_counter()
        for job in jobs:
            self._guarded(job, self._admit)
        passes = pack([job for job in jobs if job.error is None], self._size_of_building)
        report.graph_seconds = time.perf_counter() - started
        for built in self._built(passes, report):
            begun = time.perf_counter()
            for packed in self._passes([job for job in built if job.error is None]):
                report.atoms += sum(job.atoms for job in packed)
                report.edges += sum(job.edges for job in packed)
                evaluate_pack(self.force_field, packed, report.tally, self._guard)
                for job in packed:
                    job.graph = None
                    self._guarded(job, self._finish)
            report.evaluation_seconds += time.perf_counter() - begun
        self.fitted = report.tally.fitted
        self._learn(report.tally)
        report.seconds = time.perf_counter() - started
        for job in jobs:
            if job.error is not None:
                report.rejected[job.error.code] = report.rejected.get(job.error.code, 0) + 1
        return report

    @property
    def _size_of_building(self) -> PassSize:
        """Of what is built before it is evaluated: a pass, or where passes are to be filled, what several are made of."""
        return replace(self.size, full=FILLED * self.size.full) if self.force_field.pads else self.size

    def _passes(self, built: Sequence[Job]) -> list[list[Job]]:
        """The forward passes over jobs whose graphs are there: pairs were estimated for the plan, and have been counted now."""
        if self.force_field.pads:
            return fill(built, self.size, self.force_field.padded)
        return pack(built, replace(self.size, full=math.inf))

    def _built(self, passes: Sequence[Sequence[Job]], report: Report) -> Iterator[Sequence[Job]]:
        """Each pass with the graphs of its jobs; the next one's are built while the caller evaluates this one, if that is wanted.

        A structure that has to be alone is so for its graph too, since the journal could not tell which step ended the process.
        """
        following: Future[float] | None = None
        asked = time.monotonic()
        for number, jobs in enumerate(passes):
            if time.monotonic() - asked > ASK_SECONDS:
                asked = time.monotonic()
                _drop_abandoned(jobs)
            report.graph_seconds += self._build_all(jobs) if following is None else following.result()
            after = passes[number + 1] if number + 1 < len(passes) else []
            alone = any(job.alone for job in [*jobs, *after])
            following = self._builder.submit(self._build_all, after) if self._builder and after and not alone else None
            yield jobs

    def _build_all(self, jobs: Sequence[Job]) -> float:
        """Builds the graphs of one pass, in how many seconds."""
        started = time.perf_counter()
        wanted = [job for job in jobs if job.error is None]
        with self._guard(wanted, acquit=False):
            for job in wanted:
                self._guarded(job, self._build)
        return time.perf_counter() - started

    def _learn(self, tally: Tally) -> None:
        """Lowers what a pass may hold after one that ran out of memory, and raises it again when as much has gone well."""
        edges = self.size.edges
        if tally.out_of_memory:
            edges = max(1, min(edges, int(SHRINK * tally.too_large)))
            log.warning("passes are made smaller", extra={"edges": edges, "limit": self.limits.edges})
        elif edges < self.limits.edges and tally.largest_pass > edges / 2:
            edges = min(self.limits.edges, int(GROW * edges) + 1)
        if edges != self.size.edges:
            self.size = replace(self.size, edges=edges)

    @contextmanager
    def _guard(self, jobs: Sequence[Job], acquit: bool = True) -> Iterator[None]:
        during = self.journal.during([job.digest for job in jobs], acquit) if self.journal else nullcontext()
        with during, self._watchdog(sum(job.atoms for job in jobs)):
            yield

    def _admit(self, job: Job) -> None:
        """The checks that need no more than a look; a structure that has killed this model goes on alone, or not at all."""
        job.head = physics.validate(job.structure, job.head, self.variant, self.limits)
        job.expected_edges = estimated_edges(job.structure, self.force_field.cutoff)
        if self.journal is not None and not self.journal.empty:
            self._judge(job, self.journal)

    def _build(self, job: Job) -> None:
        normalised = physics.normalise(job.structure, self.force_field.cutoff)
        cutoff = self.force_field.cutoff
        physics.check_size(normalised, cutoff, self.limits)
        found = self._lists(normalised, cutoff) if self.force_field.reads_neighbours else None
        physics.check_distances(normalised, found)
        if found is not None:
            physics.check_edges(len(normalised), len(found.first), self.limits)
        graph = self.force_field.graph(normalised, job.head)
        physics.check_edges(graph.atoms, graph.edges, self.limits)
        normalised.lists.clear()  # the graph has what it needs of it
        job.graph = graph

    def _judge(self, job: Job, journal: Journal) -> None:
        if journal.condemned(job.digest):
            raise EvaluationFailed(
                f"The process of {self.variant.name} died twice while it evaluated this structure alone, so it is not tried again.",
                "Check its size, its distances and its cell; the model's log tells more.",
            )
        job.alone = journal.suspected(job.digest)

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


def _drop_abandoned(jobs: Sequence[Job]) -> None:
    """Those whose caller has gone away cost nothing more."""
    for job in jobs:
        if job.error is None and job.abandoned():
            job.error = Cancelled("The caller went away before the answer.")
