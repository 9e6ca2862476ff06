"""Bisecting a pass that fails, and the engine around passes, with a force field that fails on purpose."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcefields import catalogue
from forcefields.base import Graph, Normalised, Result
from forcefields.runtime.batch import Job, PassSize, Tally, evaluate_pack, is_out_of_memory
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.physics import Limits
from forcegate import errors
from tests.unit.faulty_force_field import ENERGY, FAULTS, Faulty, engine, job, structure


@contextmanager
def unguarded(_jobs: Sequence[Job]) -> Iterator[None]:
    yield


@pytest.mark.parametrize("guilty", range(8))
def test_bisecting_finds_exactly_the_one_that_is_to_blame(guilty: int) -> None:
    jobs = [job(k + 1, payload=RuntimeError("boom") if k == guilty else None) for k in range(8)]
    force_field, tally = Faulty(), Tally()
    evaluate_pack(force_field, jobs, tally, unguarded)
    for k, entry in enumerate(jobs):
        if k == guilty:
            assert type(entry.error) is errors.EvaluationFailed
            assert "RuntimeError: boom" in str(entry.error)
            assert entry.result is None
        else:
            assert entry.error is None
            assert entry.result is not None
            assert entry.result.energy == k + 1
    assert tally.bisections == 3, "log2 of eight"
    assert tally.passes == 3


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(st.booleans(), min_size=1, max_size=24))
def test_several_that_are_to_blame(guilty: list[bool]) -> None:
    jobs = [job(1, payload=ValueError("boom") if bad else None) for bad in guilty]
    evaluate_pack(Faulty(), jobs, Tally(), unguarded)
    assert [entry.error is not None for entry in jobs] == guilty
    assert [entry.result is None for entry in jobs] == guilty


def test_out_of_memory_halves_until_it_fits() -> None:
    jobs = [job(10) for _ in range(8)]
    force_field, tally = Faulty(room=25), Tally()
    evaluate_pack(force_field, jobs, tally, unguarded)
    assert all(entry.error is None for entry in jobs)
    assert tally.pass_atoms == [20, 20, 20, 20]
    assert tally.out_of_memory == 3


def test_a_structure_that_alone_does_not_fit() -> None:
    jobs = [job(10), job(40), job(10)]
    evaluate_pack(Faulty(room=25), jobs, Tally(), unguarded)
    assert [type(entry.error) for entry in jobs] == [type(None), errors.OutOfMemory, type(None)]
    assert "40 atoms" in str(jobs[1].error)


def test_every_pass_is_guarded() -> None:
    seen: list[list[int]] = []

    @contextmanager
    def guard(jobs: Sequence[Job]) -> Iterator[None]:
        seen.append([entry.graph.atoms for entry in jobs if entry.graph])
        yield

    force_field = Faulty(room=10)
    evaluate_pack(force_field, [job(6), job(7)], Tally(), guard)
    assert seen == force_field.passes == [[6, 7], [6], [7]]


def test_outputs_of_a_pass_are_those_of_all_its_jobs() -> None:
    asked: list[frozenset[str]] = []

    class Listening(Faulty):
        def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
            asked.append(outputs)
            return super().evaluate(graphs, outputs)

    jobs = [job(1, outputs=ENERGY), job(1, outputs=frozenset({"energy", "magmoms"}))]
    evaluate_pack(Listening(), jobs, Tally(), unguarded)
    assert asked == [frozenset({"energy", "magmoms"})]


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (KeyError("x"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, memory: bool) -> None:
    assert is_out_of_memory(error) is memory


def test_the_engine_gives_each_structure_its_own_error() -> None:
    batch = [structure(2), *(structure(3, fault) for fault in FAULTS), structure(0), structure(4)]
    jobs = [Job(entry, "", DEFAULT_OUTPUTS) for entry in batch]
    report = engine(Faulty()).run(jobs)
    assert [type(entry.error) for entry in jobs] == [
        type(None),
        errors.EvaluationFailed,
        errors.EvaluationFailed,
        errors.OutOfMemory,
        errors.NonFiniteResult,
        errors.EvaluationFailed,
        errors.InvalidStructure,
        errors.EmptyStructure,
        type(None),
    ]
    assert [entry.result.energy for entry in jobs if entry.result] == [2.0, 4.0]
    assert all((entry.result is None) != (entry.error is None) for entry in jobs)
    assert report.structures == 9
    assert report.rejected == {
        "evaluation_failed": 3,
        "out_of_memory": 1,
        "non_finite_result": 1,
        "invalid_structure": 1,
        "empty_structure": 1,
    }
    assert report.atoms == 2 + 4 * 3 + 4
    assert report.edges == 10 * report.atoms


def test_the_engine_counts_pairs_before_it_evaluates() -> None:
    force_field = Faulty()
    (refused, fine) = engine(force_field, edges=100).evaluate([structure(11), structure(10)])
    assert type(refused.error) is errors.StructureTooLarge
    assert fine.result is not None
    assert force_field.passes == [[10]]


def test_nothing_to_evaluate() -> None:
    assert engine(Faulty()).evaluate([]) == []


def test_a_pass_that_ran_out_of_memory_makes_later_ones_smaller_and_room_comes_back() -> None:
    force_field = Faulty(room=100)
    runtime = engine(force_field, edges=4000)
    batch = [structure(4) for _ in range(60)]
    report = runtime.run([Job(entry, "", DEFAULT_OUTPUTS) for entry in batch])
    assert report.rejected == {}
    assert report.tally.out_of_memory > 0
    allowed = runtime.size.edges
    assert allowed <= 10 * 120 * 0.8, "the smallest pass that failed held 120 atoms with 10 pairs each"
    force_field.room = 10**9
    for _ in range(1000):
        assert runtime.run([Job(entry, "", DEFAULT_OUTPUTS) for entry in batch]).tally.out_of_memory == 0
        if runtime.size.edges == runtime.limits.edges:
            return
    pytest.fail("the room never came back")


def test_graphs_of_the_next_pass_are_built_during_this_one() -> None:
    """Each pass waits here for the graphs of the next one, which without the thread would come only after it."""
    built = threading.Semaphore(0)
    passes = 3

    class Waiting(Faulty):
        def graph(self, structure: Normalised, head: str) -> Graph:
            built.release()
            return super().graph(structure, head)

        def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
            # Its own graph, and but for the last pass that of the next one.
            assert built.acquire(timeout=10)
            if len(self.passes) < passes - 1:
                assert built.acquire(timeout=10), "the next graph is not being built"
                built.release()
            return super().evaluate(graphs, outputs)

    runtime = Engine(Waiting(), catalogue.load().resolve("lj-argon"), Limits(10_000, 10**6), ahead=True)
    runtime.size = PassSize(2)
    jobs = runtime.evaluate([structure(2), structure(2), structure(2)])
    assert [type(entry.error) for entry in jobs] == [type(None)] * 3
    assert runtime.force_field.passes == [[2], [2], [2]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("ahead", [False, True])
def test_ahead_or_not_the_answers_are_the_same(ahead: bool) -> None:
    runtime = Engine(Faulty(), catalogue.load().resolve("lj-argon"), Limits(10_000, 10**6), ahead=ahead)
    runtime.size = PassSize(4)
    batch = [structure(2), *(structure(3, fault) for fault in FAULTS), structure(0), structure(4)]
    jobs = runtime.evaluate(batch)
    assert [entry.result.energy for entry in jobs if entry.result] == [2.0, 4.0]
    assert all((entry.result is None) != (entry.error is None) for entry in jobs)


def test_whoever_went_away_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forcefields.runtime.engine.ASK_SECONDS", 0.0)
    force_field = Faulty()
    runtime = engine(force_field)
    runtime.size = PassSize(2)
    jobs = [Job(structure(2), "", DEFAULT_OUTPUTS, abandoned=lambda gone=k == 1: gone) for k in range(3)]
    report = runtime.run(jobs)
    assert [type(entry.error) for entry in jobs] == [type(None), errors.Cancelled, type(None)]
    assert force_field.passes == [[2], [2]]
    assert report.rejected == {"cancelled": 1}


def test_whoever_goes_away_after_the_graph_was_built_is_not_evaluated_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forcefields.runtime.engine.ASK_SECONDS", 0.0)
    second = threading.Event()

    class Waiting(Faulty):
        def graph(self, structure: Normalised, head: str) -> Graph:
            if len(structure) == 3:
                second.set()
            return super().graph(structure, head)

        def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:
            assert second.wait(10), "the next graph is not being built"
            return super().evaluate(graphs, outputs)

    runtime = Engine(Waiting(), catalogue.load().resolve("lj-argon"), Limits(10_000, 10**6), ahead=True)
    runtime.size = PassSize(2)
    jobs = [Job(structure(atoms), "", DEFAULT_OUTPUTS, abandoned=lambda gone=atoms == 3: gone) for atoms in (2, 3)]
    runtime.run(jobs)
    assert [type(entry.error) for entry in jobs] == [type(None), errors.Cancelled]
    assert jobs[1].result is None
    assert runtime.force_field.passes == [[2]]  # type: ignore[attr-defined]
