"""Many relaxations in step: each structure is evaluated again as soon as its own last answer is there.

There is no barrier between steps. What is under way waits at the model together, so the steps of different structures share its
batches, and a large structure holds up no small one. As one structure leaves, the next of the input joins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError

from forcegate import errors
from forcegate.relaxation.relaxation import Relaxation, Relaxed
from forcegate.structure import Structure


class Answer(Protocol):
    """What an evaluation has to say: energy in eV, forces ``[N, 3]`` in eV/A, stress ``[6]`` in eV/A^3 or None, or an error."""

    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None
    error: errors.ForcegateError | None


class Numbered(Answer, Protocol):
    """An answer that says to which structure it belongs."""

    index: int


class Evaluator(Protocol):
    """Where structures are evaluated, several at a time. ``forcegate.evaluation`` has the one for a served model."""

    @property
    def has_room(self) -> bool:
        """Whether another structure may be submitted now."""

    def submit(self, index: int, structure: Structure) -> None:
        """Begins one evaluation."""

    def collect(self) -> Sequence[Numbered]:
        """The next answers to come, in any order; waits for one while any structure is under way."""


def drive(
    relaxations: Iterator[Relaxation | Relaxed], evaluator: Evaluator, at_once: int, on_step: Callable[[Relaxation], None]
) -> Iterator[Relaxed]:
    """Moves relaxations to their ends and yields what became of them as they finish.

    Args:
        relaxations: is read only as far as ``at_once`` allows. What is ``Relaxed`` already is passed on.
        evaluator: gives energies, forces and stresses.
        at_once: relaxations under way, at most; what bounds the memory.
        on_step: called after each answer.
    """
    active: dict[int, Relaxation] = {}
    waiting: deque[Relaxation] = deque()
    exhausted = False
    while True:
        while not exhausted and len(active) < at_once:
            if (joining := next(relaxations, None)) is None:
                exhausted = True
            elif isinstance(joining, Relaxed):
                yield joining
            else:
                active[joining.index] = joining
                waiting.append(joining)
        if not active:
            return
        while waiting and evaluator.has_room:
            relaxation = waiting.popleft()
            evaluator.submit(relaxation.index, relaxation.structure)
        for answer in evaluator.collect():
            relaxation = active[answer.index]
            take(relaxation, answer)
            on_step(relaxation)
            if relaxation.result is not None:
                del active[relaxation.index]
                yield relaxation.result
            elif evaluator.has_room and not waiting:  # the model should not wait while the others' steps are worked out
                evaluator.submit(relaxation.index, relaxation.structure)
            else:
                waiting.append(relaxation)


def take(relaxation: Relaxation, answer: Answer) -> None:
    """Gives one answer to the relaxation that it is for."""
    if answer.error is not None:
        relaxation.fail(answer.error)
        return
    assert answer.energy is not None
    assert answer.forces is not None
    relaxation.advance(answer.energy, answer.forces, answer.stress)


async def drive_one(
    relaxation: Relaxation, evaluate: Callable[[Structure], Awaitable[Answer]], on_step: Callable[[Relaxation], None] | None = None
) -> Relaxed:
    """Moves one relaxation to its end where evaluations are awaited; for many of them, gather many of these.

    Args:
        relaxation: what to move.
        evaluate: evaluates one structure. A typed error that it raises ends the relaxation, as one that it answers does; others,
            and cancellation, pass through.
        on_step: called after each answer.
    """
    while relaxation.result is None:
        try:
            answer = await evaluate(relaxation.structure)
        except errors.ForcegateError as error:
            relaxation.fail(error)
        else:
            take(relaxation, answer)
        if on_step is not None:
            on_step(relaxation)
    return relaxation.result


@dataclass
class Evaluated:
    """An ``Answer`` of one's own making."""

    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    error: errors.ForcegateError | None = None
    index: int = 0


@dataclass
class InProcess:
    """An ``Evaluator`` over a function of this process, which is given all structures that wait, together.

    Args:
        evaluate: structures -> their answers, in order; an error of one structure belongs into its answer.
        most: structures in one call, at most.
    """

    evaluate: Callable[[Sequence[Structure]], Sequence[Answer]]
    most: int = 64
    _submitted: dict[int, Structure] = field(default_factory=dict)

    @property
    def has_room(self) -> bool:
        """Whether another structure may be submitted before the next ``collect``."""
        return len(self._submitted) < self.most

    def submit(self, index: int, structure: Structure) -> None:
        """Notes the structure for the next call."""
        self._submitted[index] = structure

    def collect(self) -> list[Evaluated]:
        """Evaluates what has been submitted."""
        submitted, self._submitted = self._submitted, {}
        answers = self.evaluate(list(submitted.values())) if submitted else ()
        return [
            Evaluated(answer.energy, answer.forces, answer.stress, answer.error, index)
            for index, answer in zip(submitted, answers, strict=True)
        ]


def with_calculator(calculator: Calculator) -> Callable[[Sequence[Structure]], list[Evaluated]]:
    """``InProcess.evaluate`` by an ASE calculator, one structure after the other."""

    def evaluate(structures: Sequence[Structure]) -> list[Evaluated]:
        answers = []
        for structure in structures:
            atoms = structure.to_atoms()
            atoms.calc = calculator
            try:
                stress = atoms.get_stress() if structure.pbc.all() else None
            except PropertyNotImplementedError:
                stress = None
            try:
                answers.append(Evaluated(atoms.get_potential_energy(), atoms.get_forces(), stress))
            except errors.ForcegateError as error:
                answers.append(Evaluated(error=error))
        return answers

    return evaluate
