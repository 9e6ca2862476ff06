"""Which structures share a forward pass, and how a pass that fails is cut down to the one structure that is to blame."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

from forcefields.base import ForceField, Graph, Result
from forcefields.runtime.journal import digest
from forcegate.errors import EvaluationFailed, ForcegateError, OutOfMemory
from forcegate.structure import Structure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PassSize:
    """When a forward pass is full.

    Attributes:
        full: the sum at which it closes, in the unit of the next two: seconds where the model has been calibrated, else atoms.
        per_atom, per_edge: what an atom and a directed neighbour pair add to it.
        edges: directed neighbour pairs that fit into the memory of one pass.
        per_pass: what a pass takes besides, in the same unit.
    """

    full: float
    per_atom: float = 1.0
    per_edge: float = 0.0
    edges: int = 2**62
    per_pass: float = 0.0

    def of(self, atoms: int, edges: int) -> float:
        """What so many atoms and directed neighbour pairs add."""
        return self.per_atom * atoms + self.per_edge * edges


LARGEST = 3.0
"""A pass that is filled up may be so many times as large as a full one: where passes are padded, large ones waste less."""

Guard = Callable[[Sequence["Job"]], AbstractContextManager[None]]
"""Makes a context around one forward pass over some jobs."""

GRADIENTS = frozenset({"forces", "stress"})
"""Outputs that need a backward pass."""


@dataclass
class Job:
    """One structure on its way through the runtime: it ends with either a result or an error."""

    structure: Structure
    head: str
    outputs: frozenset[str]
    request_id: str = ""
    alone: bool = False
    """Not to share a pass: the model's process died in one that held this structure."""
    abandoned: Callable[[], bool] = lambda: False
    """Whether the caller has gone away."""
    expected_edges: int = 0
    """Estimated, for as long as there is no graph."""
    graph: Graph | None = None
    result: Result | None = None
    error: ForcegateError | None = None

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return len(self.structure)

    @property
    def edges(self) -> int:
        """Directed neighbour pairs: counted where the graph is there, else estimated."""
        return self.expected_edges if self.graph is None else self.graph.edges

    @cached_property
    def digest(self) -> bytes:
        """Identifies the structure with its head, for the journal."""
        return digest(self.structure, self.head)


@dataclass
class Tally:
    """What evaluating a batch took, for metrics and logs."""

    passes: int = 0
    bisections: int = 0
    out_of_memory: int = 0
    pass_atoms: list[int] = field(default_factory=list)
    largest_pass: int = 0
    """Directed neighbour pairs of the largest pass that was evaluated."""
    too_large: int = 2**62
    """Directed neighbour pairs of the smallest pass that ran out of memory."""
    fitted: int = 0
    """Directed neighbour pairs of the largest pass that this process has ever evaluated."""


def pack(jobs: Sequence[Job], size: PassSize) -> list[list[Job]]:
    """Splits jobs into forward passes of about ``size``.

    The order is fixed, so that one batch is always cut in the same way. Passes are made about equally large: the last one of a
    batch is then not a small one that wastes a call. A job without gradients never shares a pass with one that needs them.
    Jobs that have to be alone come last.
    """
    packs: list[list[Job]] = []
    for wants_gradients in (True, False):
        chosen = [job for job in jobs if not job.alone and bool(job.outputs & GRADIENTS) == wants_gradients]
        total = sum(size.of(job.atoms, job.edges) for job in chosen)
        share = total / max(1, round(total / size.full))
        current: list[Job] = []
        load, pairs = 0.0, 0
        for job in chosen:
            added = size.of(job.atoms, job.edges)
            if current and (load + added / 2 > share * (1 + 1e-9) or pairs + job.edges > size.edges):
                packs.append(current)
                current, load, pairs = [], 0.0, 0
            current.append(job)
            load, pairs = load + added, pairs + job.edges
        if current:
            packs.append(current)
    return packs + [[job] for job in jobs if job.alone]


def fill(jobs: Sequence[Job], size: PassSize, padded: Callable[[int, int], tuple[int, int]]) -> list[list[Job]]:
    """Splits jobs, in their order, into the forward passes that take the least time together where passes are padded.

    Equal passes would often be a little larger than one of the sizes, and be padded to the next. The shortest way over all places
    where a pass may end is found step by step (R. Bellman, Q. Appl. Math. 16, 87 (1958)).

    Args:
        jobs: with their graphs, of one pass of ``pack``.
        padded: atoms and directed pairs -> those that are computed.
    """
    if len(jobs) < 2 or math.isinf(size.full):
        return pack(jobs, size)
    least = [0.0] + [math.inf] * len(jobs)
    begins = [0] * (len(jobs) + 1)
    for first in range(len(jobs)):
        atoms = edges = 0
        for last in range(first, len(jobs)):
            atoms, edges = atoms + jobs[last].atoms, edges + jobs[last].edges
            shared = last > first  # one structure alone may be as large as it is
            if shared and (edges > size.edges or size.of(atoms, edges) > LARGEST * size.full):
                break
            computed_atoms, computed_edges = padded(atoms, edges)
            if shared and computed_edges > size.edges:
                continue
            taken = least[first] + size.per_pass + size.of(computed_atoms, computed_edges)
            if taken < least[last + 1]:
                least[last + 1], begins[last + 1] = taken, first
    passes, end = [], len(jobs)
    while end:
        passes.append(list(jobs[begins[end] : end]))
        end = begins[end]
    return passes[::-1]


def evaluate_pack(force_field: ForceField, jobs: Sequence[Job], tally: Tally, guard: Guard) -> None:
    """Evaluates jobs in one forward pass; on failure in halves, until the one that fails is alone.

    Each job gets its result or its own error; nothing is raised.

    Args:
        guard: the context of each pass (watchdog and journal).
    """
    outputs = frozenset[str]().union(*(job.outputs for job in jobs))
    atoms, edges = sum(job.atoms for job in jobs), sum(job.edges for job in jobs)
    try:
        with guard(jobs):
            results = force_field.evaluate([_graph(job) for job in jobs], outputs)
        tally.passes += 1
        tally.pass_atoms.append(atoms)
        tally.largest_pass = max(tally.largest_pass, edges)
        tally.fitted = max(tally.fitted, edges)
    except Exception as error:  # whatever a package raises, it must not reach another user's structure
        failure: ForcegateError | None = None
        if memory := is_out_of_memory(error):
            tally.out_of_memory += 1
            tally.too_large = min(tally.too_large, edges)
        if len(jobs) == 1:
            failure = _failure(error, memory, atoms, edges, tally.fitted)
            jobs[0].error = failure
            log.warning("evaluation failed", exc_info=error, extra={"request_id": jobs[0].request_id, "code": failure.code})
            return
        tally.bisections += 1
    else:
        for job, result in zip(jobs, results, strict=True):
            job.result = result
        return
    # Outside the except block: there the traceback keeps the failed pass's tensors alive.
    if memory:
        release_memory()
    for half in _halves(jobs):
        evaluate_pack(force_field, half, tally, guard)


def _failure(error: Exception, memory: bool, atoms: int, edges: int, fitted: int) -> ForcegateError:
    if isinstance(error, ForcegateError):
        return error
    if memory:
        told = f"A structure of {atoms} atoms and {edges:,} neighbour pairs does not fit into this device's memory now"
        if not 0 < fitted < edges:
            return OutOfMemory(f"{told}.")
        return OutOfMemory(f"{told}; {fitted:,} pairs have fitted, about {atoms * fitted // edges} atoms as dense as these.")
    return EvaluationFailed(f"The model failed on this structure: {type(error).__name__}: {str(error)[:300]}")


def _halves(jobs: Sequence[Job]) -> Iterator[Sequence[Job]]:
    middle = len(jobs) // 2
    yield jobs[:middle]
    yield jobs[middle:]


def _graph(job: Job) -> Graph:
    assert job.graph is not None, "graphs are built before packing"
    return job.graph


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a package ran out of memory: Python's own error, torch's on a GPU, or torch's on the CPU (a RuntimeError)."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text


def release_memory() -> None:
    """Gives cached GPU memory back, where torch is loaded and holds any."""
    import sys

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
