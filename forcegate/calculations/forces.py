"""Where the forces of a calculation come from: one calculator after the other, or a served model with everything in flight.

Displacements, strains and volumes of one calculation go out together through ``Forces``, so that a server can batch them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator

from forcegate import errors
from forcegate.calculations.progress import Progress, Step
from forcegate.calculations.states import NOWHERE, State, States

FIRST_GROUP, SMALLEST_GROUP, LARGEST_GROUP = 32, 8, 256
"""Structures that are in flight together. Between two groups progress is told, states are kept, and a calculation can be ended."""
GROUP_SECONDS = 5.0
"""Groups shrink where one takes longer than this, and grow where it takes less than half."""

_Job = TypeVar("_Job")
_Outcome = TypeVar("_Outcome")


@dataclass(frozen=True)
class Point:
    """One evaluated structure: energy in eV, forces ``[N, 3]`` in eV/A, stress ``[6]`` in eV/A^3 (ASE's sign and order) or None."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


@runtime_checkable
class Forces(Protocol):
    """A source of energies, forces and stresses at one level of theory."""

    parallel: int
    """Calculators that may be at work at once, each in a thread of its own."""

    def evaluate(self, structures: Sequence[Atoms]) -> list[Point]:
        """All ``structures``, in their order."""

    def calculator(self) -> BaseCalculator:
        """A calculator for one relaxation; with ``parallel`` above 1 a new one each time."""


class OneByOne:
    """Any ASE calculator as ``Forces``: one structure after the other."""

    parallel = 1

    def __init__(self, calculator: BaseCalculator) -> None:
        self._calculator = calculator

    def calculator(self) -> BaseCalculator:
        """The calculator itself."""
        return self._calculator

    def evaluate(self, structures: Sequence[Atoms]) -> list[Point]:
        """One after the other; the structures are not changed."""
        return [point(structure, self._calculator) for structure in structures]


class Served:
    """A served model as ``Forces``: many structures share the model's batches, and so do relaxations side by side.

    Args:
        model: name of the model, such as ``sevennet-0``.
        address: ``host:port`` of Triton's gRPC; ``FORCEGATE_GRPC``, else ``127.0.0.1:8001``.
        head: head, modal or task; the model's default where it is None.
        dispersion: ``none``, ``d3bj`` or ``auto``, as for ``ForcegateCalculator``. It is in every number or the call fails.
        timeout: seconds for one structure.
        parallel: relaxations side by side, at most.

    Raises:
        ForcegateError: on use, the typed error of the model or of the service.
    """

    def __init__(
        self,
        model: str,
        address: str | None = None,
        *,
        head: str | None = None,
        dispersion: str = "none",
        timeout: float = 300.0,
        parallel: int = 32,
    ) -> None:
        self.model, self.address, self.head = model, address, head
        self.dispersion, self.timeout, self.parallel = dispersion, timeout, parallel

    def calculator(self) -> Calculator:
        """A new ``ForcegateCalculator``; threads that share one would take turns."""
        from forcegate.calculator import ForcegateCalculator

        return ForcegateCalculator(
            self.model, self.address, head=self.head, timeout=self.timeout, dispersion=self.dispersion, connect_timeout=2.0
        )

    def provenance(self) -> dict[str, str]:
        """Model, head, checkpoint, functional and dispersion behind the numbers."""
        from forcegate.calculator import ForcegateCalculator

        with ForcegateCalculator(
            self.model, self.address, head=self.head, dispersion=self.dispersion, connect_timeout=2.0
        ) as calculator:
            return calculator.provenance

    def evaluate(self, structures: Sequence[Atoms]) -> list[Point]:
        """All of them in flight together, and so are their dispersion corrections where there is one.

        Raises:
            ForcegateError: one of the structures failed; which one is in the sentence.
        """
        points = self._evaluate(structures, self.model, self.head)
        if (correction := self._correction()) is not None:
            points = [_sum(*pair) for pair in zip(points, self._evaluate(structures, correction, None), strict=True)]
        return points

    def _correction(self) -> str | None:
        if self.dispersion == "none":
            return None
        from forcegate.connection import Connection
        from forcegate.retries import Attempts

        connection = Connection(self.model, self.address)
        try:
            return connection.correction(self.head, self.dispersion, Attempts(self.timeout, 2.0))
        finally:
            connection.close()

    def _evaluate(self, structures: Sequence[Atoms], model: str, head: str | None) -> list[Point]:
        from forcegate.evaluation import evaluate

        answers = evaluate(structures, model, head=head, address=self.address, timeout=self.timeout, connect_timeout=2.0)
        return [Point(float(answer.energy), answer.forces, answer.stress) for answer in answers]  # type: ignore[arg-type]


def forces_of(source: BaseCalculator | Forces) -> Forces:
    """``source`` itself, or the calculator as a source that works one by one."""
    if isinstance(source, Forces):
        return source
    if not hasattr(source, "get_property"):
        raise errors.InvalidRequest(
            f"{type(source).__name__} is no source of forces.",
            "Give an ASE calculator, or a Forces of forcegate.calculations.forces.",
        )
    return OneByOne(source)


def calculator_of(source: BaseCalculator | Forces) -> BaseCalculator:
    """One ASE calculator from ``source``."""
    return forces_of(source).calculator()


def point(atoms: Atoms, calculator: BaseCalculator) -> Point:
    """Energy, forces and, where the structure is periodic in all three directions, stress; constraints play no part.

    Raises:
        NonFiniteResult: the calculator answered NaN or infinity.
    """
    copy = atoms.copy()
    copy.set_constraint()
    copy.calc = calculator
    forces = np.array(copy.get_forces())
    energy = float(copy.get_potential_energy())
    stress = np.array(copy.get_stress()) if copy.pbc.all() else None
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise errors.NonFiniteResult("The calculator answered NaN or infinity.")
    return Point(energy, forces, stress)


def evaluate_kept(
    forces: Forces,
    structures: Sequence[Atoms],
    told: Callable[[int, Point], None],
    states: States = NOWHERE,
    part: str = "points",
    *,
    energies_alone: bool = False,
) -> list[Point]:
    """All ``structures``, in their order, those that a former attempt has evaluated from its states.

    States are pieces with the points since the one before, so that what is kept is written once.

    Args:
        told: called with the number and the point of each structure, once its group is there.
        part: name of the states; the pieces are ``part/0`` and so on, by the number of their first structure.
        energies_alone: keep no forces and no stresses, where nobody reads them; points of a former attempt have none then.

    Raises:
        ForcegateError: one of the structures failed.
    """
    points: list[Point] = []
    while len(points) < len(structures) and (state := states.state(f"{part}/{len(points)}")) is not None:
        points += _unpacked(state, [len(each) for each in structures[len(points) :]])
    kept = len(points)
    checkpoint = states.checkpoint(f"{part}/{kept}")
    for index, each in enumerate(points):
        told(index, each)
    size = FIRST_GROUP if forces.parallel > 1 else 1
    while len(points) < len(structures):
        first, began = len(points), time.monotonic()
        found = forces.evaluate(structures[first : first + size])
        if forces.parallel > 1:
            size = _next_size(size, time.monotonic() - began)
        points += found
        for index, each in enumerate(found, start=first):
            told(index, each)
        written: list[State] = []

        def piece(fresh: Sequence[Point] = tuple(points[kept:]), written: list[State] = written) -> State:
            written.append(_packed(fresh, energies_alone))
            return written[0]

        checkpoint(piece)
        if written:
            kept = len(points)
            checkpoint = states.checkpoint(f"{part}/{kept}")
    return points


def point_kept(work: Callable[[], Point], atoms: int, states: States, name: str) -> Point:
    """The point, of a structure of so many ``atoms``, that ``work`` gives, or gave in a former attempt."""
    if (state := states.state(name)) is not None:
        return _unpacked(state, [atoms])[0]
    found = work()
    states.keep_state(name, _packed([found], energies_alone=False))
    return found


def _next_size(size: int, seconds: float) -> int:
    if seconds > GROUP_SECONDS:
        return max(SMALLEST_GROUP, size // 2)
    return min(LARGEST_GROUP, 2 * size) if seconds < GROUP_SECONDS / 2 else size


def _packed(points: Sequence[Point], energies_alone: bool) -> State:
    arrays = {"energies": np.array([each.energy for each in points])}
    if not energies_alone:
        arrays["forces"] = np.concatenate([each.forces for each in points])
        arrays["stresses"] = np.array([np.full(6, np.nan) if each.stress is None else each.stress for each in points])
    return State("points", len(points), arrays)


def _unpacked(state: State, sizes: Sequence[int]) -> list[Point]:
    energies = state.arrays["energies"]
    if "forces" not in state.arrays:
        return [Point(float(energy), np.empty((0, 3)), None) for energy in energies]
    forces = np.split(state.arrays["forces"], np.cumsum(sizes[: state.step])[:-1])
    stresses = [None if np.isnan(each).all() else each for each in state.arrays["stresses"]]
    return [Point(float(energy), one, other) for energy, one, other in zip(energies, forces, stresses, strict=True)]


def side_by_side(
    forces: Forces,
    jobs: Sequence[_Job],
    work: Callable[[BaseCalculator, _Job, int, Progress], _Outcome],
    progress: Progress,
) -> list[_Outcome]:
    """``work(calculator, job, number, progress)`` for each job, in threads with a calculator each where ``forces`` allows it.

    What ``progress`` or one of the jobs raises ends all of them within one step, and is raised here.
    """
    if forces.parallel == 1 or len(jobs) == 1:
        return [work(forces.calculator(), job, number, progress) for number, job in enumerate(jobs)]
    lock, ended = threading.Lock(), threading.Event()

    def guarded(step: Step) -> None:
        with lock:
            if ended.is_set():
                raise _Ended
            try:
                progress(step)
            except BaseException:
                ended.set()
                raise

    def run(number: int, job: _Job) -> _Outcome:
        calculator = forces.calculator()
        try:
            return work(calculator, job, number, guarded)
        finally:
            if (close := getattr(calculator, "close", None)) is not None:
                close()

    with ThreadPoolExecutor(min(forces.parallel, len(jobs)), thread_name_prefix="relaxation") as threads:
        futures = [threads.submit(run, number, job) for number, job in enumerate(jobs)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            if any(future.done() and future.exception() is not None for future in futures) or not all(f.done() for f in futures):
                ended.set()
                threads.shutdown(cancel_futures=True)
    failures = [future.exception() for future in futures if not future.cancelled() and future.exception() is not None]
    for failure in failures:
        if failure is not None and not isinstance(failure, _Ended):
            raise failure
    return [future.result() for future in futures]


class _Ended(Exception):
    """Another job has failed, or the calculation was cancelled."""


def _sum(one: Point, other: Point) -> Point:
    stress = None if one.stress is None or other.stress is None else one.stress + other.stress
    return Point(one.energy + other.energy, one.forces + other.forces, stress)
