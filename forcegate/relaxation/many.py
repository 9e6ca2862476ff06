"""``relax_many`` and ``iterate_relaxations``: many structures to their minima at one served model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ase import Atoms

from forcegate import errors
from forcegate.connection import Connection
from forcegate.evaluation import _check, _Stream
from forcegate.relaxation.driver import Answer, Evaluator, InProcess, drive
from forcegate.relaxation.relaxation import Relaxation, Relaxed, Settings
from forcegate.relaxation.store import Store
from forcegate.retries import Attempts
from forcegate.structure import Structure

AT_ONCE = 64
"""Relaxations under way at once. More make larger batches until the model is saturated, which CPUs are with far fewer."""

OUTPUTS = ("energy", "forces", "stress")

Evaluate = Callable[[Sequence[Structure]], Sequence[Answer]]
"""A model of this process: structures -> their answers, in order."""


def relax_many(
    structures: Iterable[Atoms | Structure], model: str | Evaluate, *, raise_errors: bool = True, **options: Any
) -> list[Relaxed]:
    """Relaxes many structures and returns what became of them in the order of the input.

    Args:
        structures: ASE Atoms with their constraints, or ``Structure``; they are not changed.
        model: name of a served model, or a function of this process (``forcegate.relaxation.with_calculator`` makes one).
        raise_errors: raise the first error of a structure. With False it is in that structure's ``error`` and the others go on.
            One that takes ``max_steps`` is no error; its ``converged`` is False.
        options: those of ``iterate_relaxations``.

    Raises:
        ForcegateError: the service or the model is not there; or, with ``raise_errors``, a structure's own error.
    """
    results = []
    for result in iterate_relaxations(structures, model, **options):
        if raise_errors and result.error is not None:
            error = type(result.error)(
                f"Structure {result.index} ({result.atoms.get_chemical_formula()}): {result.error.detail}", result.error.hint
            )
            error.request_id = result.error.request_id
            raise error
        results.append(result)
    return sorted(results, key=lambda result: result.index)


def iterate_relaxations(
    structures: Iterable[Atoms | Structure],
    model: str | Evaluate,
    *,
    fmax: float = 0.05,
    max_steps: int = 500,
    optimizer: str = "fire",
    cell: str = "frechet",
    pressure: float = 0.0,
    head: str | None = None,
    address: str | None = None,
    in_flight: int = AT_ONCE,
    timeout: float = 300.0,
    connect_timeout: float = 10.0,
    on_step: Callable[[Relaxation], None] | None = None,
    store: Store | None = None,
) -> Iterator[Relaxed]:
    """Relaxes structures as they come and yields what became of them as they finish; the memory does not grow with their number.

    Each takes the steps that ASE's optimizer with the same cell filter would take with it alone. A structure that fails has its
    ``error`` set; the others go on.

    Args:
        structures: ASE Atoms with their constraints, or ``Structure``; a generator will do.
        model: name of a served model, or a function of this process.
        fmax, max_steps, optimizer, cell, pressure: see ``Settings``.
        head: head (MACE), modal (SevenNet) or task (UMA); the model's default where it is None.
        address: ``host:port`` of Triton's gRPC; ``FORCEGATE_GRPC``, else ``127.0.0.1:8001``.
        in_flight: relaxations under way at once, at most.
        timeout: seconds for one evaluation, waiting and retries included.
        connect_timeout: seconds to wait at the start for a service that does not answer.
        on_step: called after each evaluation with its ``Relaxation``.
        store: where the state is kept, so that a later call with the same structures goes on from it.

    Raises:
        InvalidRequest: a setting has no meaning, or the store belongs to another run.
        ForcegateError: the service or the model is not there, or not for longer than ``timeout``.
    """
    settings = Settings(fmax, max_steps, optimizer, cell, pressure)
    at_once = max(1, in_flight)
    with _evaluator(model, head, address, at_once, timeout, connect_timeout) as (evaluator, provenance):
        if store is not None:
            store.open(settings, provenance)

        def stepped(relaxation: Relaxation) -> None:
            if store is not None:
                store.stepped(relaxation)
            if on_step is not None:
                on_step(relaxation)

        for result in drive(_begun(structures, settings, store), evaluator, at_once, stepped):
            result = replace(result, provenance=provenance)
            if store is not None:
                store.finish(result)
            yield result


def _begun(structures: Iterable[Atoms | Structure], settings: Settings, store: Store | None) -> Iterator[Relaxation | Relaxed]:
    """The relaxations of the structures, taken up where the store has them."""
    for index, item in enumerate(structures):
        if not isinstance(item, Atoms | Structure):
            raise TypeError(f"Structure {index} is a {type(item).__name__}; ase.Atoms or forcegate.structure.Structure is needed.")
        atoms = item.to_atoms() if isinstance(item, Structure) else item
        if store is not None and (finished := store.result(index, atoms)) is not None:
            yield finished
            continue
        try:
            relaxation = Relaxation(index, atoms, settings)
        except errors.ForcegateError as error:
            yield Relaxed(index, atoms.copy(), error=error)
            continue
        if store is not None:
            store.begin(relaxation, atoms)
        yield relaxation


@contextmanager
def _evaluator(
    model: str | Evaluate, head: str | None, address: str | None, at_once: int, timeout: float, connect_timeout: float
) -> Iterator[tuple[Evaluator, dict[str, str]]]:
    if not isinstance(model, str):
        yield InProcess(model, at_once), {}
        return
    connection = Connection(model, address)
    stream = _Stream(connection, OUTPUTS, head, at_once, timeout)
    try:
        attempts = Attempts(timeout, connect_timeout)
        _check(connection, OUTPUTS, head, attempts)
        stream.provenance = connection.provenance(head, attempts)
        yield stream, stream.provenance
    finally:
        stream.cancel()
        connection.close()
