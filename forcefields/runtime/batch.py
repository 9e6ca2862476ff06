"""Which structures share a forward pass, and how a pass that fails is cut down to the one structure that is to blame."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from forcefields.base import ForceField, Graph, Result
from forcegate.errors import EvaluationFailed, ForcegateError, OutOfMemory
from forcegate.structure import Structure

log = logging.getLogger(__name__)

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
    graph: Graph | None = None
    result: Result | None = None
    error: ForcegateError | None = None


@dataclass
class Tally:
    """What evaluating a batch took, for metrics and logs."""

    passes: int = 0
    bisections: int = 0
    out_of_memory: int = 0
    pass_atoms: list[int] = field(default_factory=list)


def pack(jobs: Sequence[Job], atoms: int, edges: int) -> list[list[Job]]:
    """Splits jobs into forward passes of about ``atoms`` atoms and at most ``edges`` neighbour pairs.

    The order is fixed, so that one batch is always cut in the same way. Passes are made about equally large: the last one of a
    batch is then not a small one that wastes a call. A job without gradients never shares a pass with one that needs them.
    Jobs that have to be alone come last.
    """
    packs: list[list[Job]] = []
    for wants_gradients in (True, False):
        chosen = [job for job in jobs if not job.alone and bool(job.outputs & GRADIENTS) == wants_gradients]
        total = sum(_graph(job).atoms for job in chosen)
        share = total / max(1, round(total / atoms))
        current: list[Job] = []
        size = pairs = 0
        for job in chosen:
            graph = _graph(job)
            if current and (size + graph.atoms / 2 > share or pairs + graph.edges > edges):
                packs.append(current)
                current, size, pairs = [], 0, 0
            current.append(job)
            size, pairs = size + graph.atoms, pairs + graph.edges
        if current:
            packs.append(current)
    return packs + [[job] for job in jobs if job.alone]


def evaluate_pack(force_field: ForceField, jobs: Sequence[Job], tally: Tally, guard: Guard) -> None:
    """Evaluates jobs in one forward pass; on failure in halves, until the one that fails is alone.

    Each job gets its result or its own error; nothing is raised.

    Args:
        guard: the context of each pass (watchdog and journal).
    """
    outputs = frozenset[str]().union(*(job.outputs for job in jobs))
    atoms = sum(_graph(job).atoms for job in jobs)
    try:
        with guard(jobs):
            results = force_field.evaluate([_graph(job) for job in jobs], outputs)
        tally.passes += 1
        tally.pass_atoms.append(atoms)
    except Exception as error:  # whatever a package raises, it must not reach another user's structure
        failure: ForcegateError | None = None
        if memory := is_out_of_memory(error):
            tally.out_of_memory += 1
        if len(jobs) == 1:
            failure = _failure(error, memory, atoms)
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


def _failure(error: Exception, memory: bool, atoms: int) -> ForcegateError:
    if isinstance(error, ForcegateError):
        return error
    if memory:
        return OutOfMemory(f"A structure of {atoms} atoms does not fit into this device's memory.")
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
