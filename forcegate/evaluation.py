"""``evaluate`` and ``iterate``: many structures at one model, with many requests in flight so that they share batches."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import tee
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from forcegate import errors
from forcegate.calculator import results_of
from forcegate.connection import Connection, decode, extra_outputs, new_request_id
from forcegate.dispersion import UNCORRECTED, choice
from forcegate.retries import Attempts
from forcegate.structure import Structure, from_atoms

Progress = Callable[[int, int | None], None]
"""Called with the number of structures that are done and the number of all, None where that is not known."""

FIRST_WINDOW = 32
"""Requests in flight at the start. The window grows with every quick answer, so that a slow model is not swamped at once."""

HELD_BACK = 4
"""Answers that wait for an earlier one of the same run, at most, as a multiple of ``in_flight``: what bounds the memory."""


@dataclass
class Evaluation:
    """What a model says of one structure.

    Attributes:
        index: place of the structure in the input.
        atoms: the input itself.
        energy: eV.
        forces: float64 ``[N, 3]``, eV/A.
        stress: float64 ``[6]``, eV/A^3, Voigt xx yy zz yz xz xy, ASE's sign; None unless periodic in all three directions.
        extra: further outputs by name, such as ``magmoms`` ``[N]`` in mu_B.
        error: why there is no answer; all of the above are then None or empty.
        provenance: model, head, checkpoint and what else names the origin of the numbers.
    """

    index: int
    atoms: Atoms
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    error: errors.ForcegateError | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def to_atoms(self) -> Atoms:
        """A copy of the input with the results attached (``SinglePointCalculator``).

        Raises:
            ForcegateError: the structure's own error, where it has one.
        """
        if self.error is not None:
            raise self.error
        atoms = self.atoms.copy()
        results = {"energy": self.energy, "free_energy": self.energy, "forces": self.forces, "stress": self.stress, **self.extra}
        atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
        return atoms


def evaluate(
    structures: Iterable[Atoms | Structure],
    model: str,
    *,
    raise_errors: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> list[Evaluation]:
    """Evaluates many structures and returns the answers in their order.

    Args:
        structures: ASE Atoms, or ``Structure``; they are not changed.
        model: name of the model, such as ``sevennet-0``.
        raise_errors: raise the first structure's error. With False it is in that structure's ``error`` and the others go on.
        progress: called after each structure.
        options: those of ``iterate``.

    Raises:
        ForcegateError: the service or the model is not there; or, with ``raise_errors``, a structure's own error.
    """
    total = len(structures) if isinstance(structures, Sized) else None
    results = []
    for result in iterate(structures, model, **options):
        if raise_errors and (error := result.error) is not None:
            raise named(error, result)
        results.append(result)
        if progress is not None:
            progress(len(results), total)
    return results


def named(error: errors.ForcegateError, result: Evaluation) -> errors.ForcegateError:
    """The same error with the number and the formula of the structure in its sentence."""
    again = type(error)(f"Structure {result.index} ({result.atoms.get_chemical_formula()}): {error.detail}", error.hint)
    again.request_id = error.request_id
    return again


def iterate(
    structures: Iterable[Atoms | Structure],
    model: str,
    *,
    outputs: Sequence[str] = ("energy", "forces", "stress"),
    head: str | None = None,
    dispersion: str = "none",
    address: str | None = None,
    in_flight: int = 64,
    timeout: float = 300.0,
    connect_timeout: float = 10.0,
) -> Iterator[Evaluation]:
    """Evaluates structures as they come and yields the answers in their order, in memory that does not grow with their number.

    A structure that fails has its ``error`` set; the others go on. When the model's process dies, the structures that were being
    evaluated are sent again to the next one.

    Args:
        structures: ASE Atoms, or ``Structure``; a generator will do.
        model: name of the model.
        outputs: what to compute: ``energy``, ``forces``, ``stress`` or a further output of the model. Stress is left out where
            a structure is not periodic in all three directions.
        head: head (MACE), modal (SevenNet) or task (UMA); the model's default where it is None.
        dispersion: ``none``; ``d3bj`` adds the served D3(BJ) correction of the model's functional to energy, forces and stress;
            ``auto`` adds it where the model's policy recommends it. It has no per-atom ``energies``.
        address: ``host:port`` of Triton's gRPC; ``FORCEGATE_GRPC``, else ``127.0.0.1:8001``.
        in_flight: requests that wait at the service at once, at most; as many again for the correction.
        timeout: seconds for one structure from the first time it is sent, waiting behind others and retries included.
        connect_timeout: seconds to wait at the start for a service that does not answer.

    Raises:
        ForcegateError: the service or the model is not there, or not for longer than ``timeout``.
        UnknownHead, UnsupportedOutput: the model has no such head or output.
        DispersionNotSupported: D3 was asked for, and adding it to this model would be wrong.
    """
    choice(dispersion)
    connection = Connection(model, address)
    stream = _Stream(connection, outputs, head, max(1, in_flight), timeout)
    try:
        attempts = Attempts(timeout, connect_timeout)
        _check(connection, outputs, head, attempts)
        stream.provenance = connection.provenance(head, attempts, dispersion)
        correction = connection.correction(head, dispersion, attempts)
        if correction is None:
            yield from stream.run(structures)
        else:
            yield from _corrected(stream, structures, Connection(correction, address), attempts)
    finally:
        stream.cancel()
        connection.close()


def _corrected(
    stream: _Stream, structures: Iterable[Atoms | Structure], connection: Connection, attempts: Attempts
) -> Iterator[Evaluation]:
    """The answers of ``stream`` with those of the correction added, each structure sent to both at about the same time."""
    if impossible := UNCORRECTED & set(stream.outputs):
        raise errors.UnsupportedOutput(f"With {connection.model} added there are no {', '.join(sorted(impossible))}.")
    outputs = [name for name in stream.outputs if name in ("energy", "forces", "stress")]
    correction = _Stream(connection, outputs, None, stream.in_flight, stream.timeout)
    try:
        connection.parameters(attempts)  # one that is not loaded is told before anything is evaluated
        # Each of them reads ahead of the other by no more than what it holds back.
        for one, other in zip(
            *(part.run(source) for part, source in zip((stream, correction), tee(structures), strict=True)), strict=True
        ):
            yield _sum(one, other)
    finally:
        correction.cancel()
        connection.close()


def _sum(one: Evaluation, correction: Evaluation) -> Evaluation:
    """The first with the second added; with the second's error where only that one failed."""
    if one.error is None and correction.error is not None:
        return Evaluation(one.index, one.atoms, error=correction.error)
    for name in ("energy", "forces", "stress"):
        if (value := getattr(one, name)) is not None:
            setattr(one, name, value + getattr(correction, name))
    return one


def _check(connection: Connection, outputs: Sequence[str], head: str | None, attempts: Attempts) -> None:
    parameters = connection.parameters(attempts)
    heads = [name for name in parameters.get("heads", "").split(",") if name]
    if head and head not in heads:
        raise errors.UnknownHead(
            f"The model {connection.model!r} has no head {head!r}.",
            f"It has: {', '.join(heads)}." if heads else "It has a single head.",
        )
    known = ("energy", "forces", "stress", *extra_outputs(parameters))
    if unknown := [name for name in outputs if name not in known]:
        raise errors.UnsupportedOutput(
            f"The model {connection.model!r} does not compute {', '.join(unknown)}.", f"It computes: {', '.join(known)}."
        )


@dataclass
class _Call:
    index: int
    atoms: Atoms
    request: Any
    attempts: Attempts
    sent: float = 0.0
    sent_to: str | None = None


class _Stream:
    """Keeps requests in flight; everything but the hand-over of finished ones happens in the caller's thread."""

    def __init__(self, connection: Connection, outputs: Sequence[str], head: str | None, in_flight: int, timeout: float) -> None:
        self.provenance: dict[str, str] = {}
        self._connection = connection
        self.outputs, self.in_flight, self.timeout = tuple(outputs), in_flight, timeout
        self._head = head
        self._window = float(min(in_flight, FIRST_WINDOW))
        self._narrowed = 0.0
        self._flying: dict[int, grpc.Future] = {}
        self._finished: SimpleQueue[tuple[_Call, grpc.Future]] = SimpleQueue()
        self._again: list[tuple[float, int, _Call, errors.ForcegateError]] = []
        self._done: dict[int, Evaluation] = {}

    def run(self, structures: Iterable[Atoms | Structure]) -> Iterator[Evaluation]:
        """Sends, collects and yields in order until all is done."""
        source = enumerate(structures)
        read = given = 0
        exhausted = False
        while True:
            while not exhausted and not self._again and self._room() and read - given < HELD_BACK * self.in_flight:
                if (item := next(source, None)) is None:
                    exhausted = True
                else:
                    read += 1
                    self._start(*item)
            self._send_again()
            while given in self._done:
                yield self._done.pop(given)
                given += 1
            if self._flying or self._again:
                self._collect()
            elif exhausted and given == read:
                return

    def submit(self, index: int, structure: Atoms | Structure) -> None:
        """Sends one structure; for callers that want answers as they come, instead of ``run``."""
        self._start(index, structure)

    def collect(self) -> list[Evaluation]:
        """The next answers to come, in no order; waits for one while any structure is under way."""
        while not self._done and (self._flying or self._again):
            self._send_again()
            self._collect()
        done, self._done = list(self._done.values()), {}
        return done

    @property
    def has_room(self) -> bool:
        """Whether another structure may be sent now."""
        return not self._again and self._room()

    def cancel(self) -> None:
        """Calls off what is still in flight."""
        for future in list(self._flying.values()):
            future.cancel()

    def _room(self) -> bool:
        return len(self._flying) < int(self._window)

    def _start(self, index: int, item: Atoms | Structure) -> None:
        if not isinstance(item, Atoms | Structure):
            raise TypeError(f"Structure {index} is a {type(item).__name__}; ase.Atoms or forcegate.structure.Structure is needed.")
        atoms = item.to_atoms() if isinstance(item, Structure) else item
        try:
            structure = item if isinstance(item, Structure) else from_atoms(item)
        except errors.ForcegateError as error:
            self._done[index] = Evaluation(index, atoms, error=error)
            return
        outputs = [name for name in self.outputs if name != "stress" or structure.pbc.all()]
        request = self._connection.request([structure], outputs, self._head, new_request_id())
        self._send(_Call(index, atoms, request, Attempts(self.timeout)))

    def _send(self, call: _Call) -> None:
        call.sent, call.sent_to = time.monotonic(), self._connection.process.current
        future = self._connection.stub.ModelInfer.future(call.request, timeout=call.attempts.remaining)
        self._flying[call.index] = future
        future.add_done_callback(lambda done: self._finished.put((call, done)))

    def _send_again(self) -> None:
        while self._again and self._room() and self._again[0][0] <= time.monotonic():
            _, _, call, error = heapq.heappop(self._again)
            if self._connection.process.replaced():
                self._send(call)
            else:
                self._later(call, error, call.attempts.pause)

    def _collect(self) -> None:
        """Waits for one answer, or until a call is due to be sent again."""
        wait = None
        if self._again and self._room():
            wait = max(0.0, self._again[0][0] - time.monotonic())
        try:
            call, future = self._finished.get(timeout=wait)
        except Empty:
            return
        del self._flying[call.index]
        if (failure := future.exception()) is not None:
            self._failed(call, failure)
            return
        self._connection.answered = True
        self._adapt(time.monotonic() - call.sent)
        results = results_of(decode(future.result()), len(call.atoms))
        results.pop("free_energy", None)
        known = {name: results.pop(name, None) for name in ("energy", "forces", "stress")}
        self._done[call.index] = Evaluation(call.index, call.atoms, **known, extra=results, provenance=self.provenance)

    def _failed(self, call: _Call, failure: Exception) -> None:
        if not isinstance(failure, grpc.RpcError):
            raise failure
        error = self._connection.typed(failure)
        self._later(call, error, lambda error: self._connection.pause_after(error, call.attempts, call.sent_to))

    def _later(self, call: _Call, error: errors.ForcegateError, pause: Callable[[errors.ForcegateError], float]) -> None:
        """Notes the call to be sent again after ``pause(error)`` seconds, or finishes it with what that raises."""
        try:
            due = time.monotonic() + pause(error)
        except errors.ForcegateError as final:
            final.request_id = call.request.id
            if final.status in (404, 409, 503):  # the model or the service is gone: no other structure will fare better
                raise
            self._done[call.index] = Evaluation(call.index, call.atoms, error=final)
        else:
            heapq.heappush(self._again, (due, call.index, call, error))

    def _adapt(self, seconds: float) -> None:
        # Waiting in the queue counts towards a request's deadline, so the queue is kept well under it.
        now = time.monotonic()
        if seconds <= self.timeout / 4:
            self._window = min(self.in_flight, self._window + 1)
        elif now - self._narrowed > seconds:
            self._window, self._narrowed = max(1.0, self._window / 2), now
