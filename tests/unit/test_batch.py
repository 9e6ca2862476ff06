"""Packing, bisecting and the engine around them, with a force field that fails on purpose.

The force field is a double of an adapter and nothing else: its energies are made up, and each structure's first coordinate says
what is to go wrong with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcefields import catalogue
from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.runtime.batch import GRADIENTS, LARGEST, Job, PassSize, Tally, evaluate_pack, fill, is_out_of_memory, pack
from forcefields.runtime.engine import DEFAULT_OUTPUTS, Engine
from forcefields.runtime.physics import Limits
from forcegate import errors
from forcegate.structure import Structure

ENERGY = frozenset({"energy"})


class Faulty(ForceField):
    """Answers with the number of atoms; a graph's payload may hold an error to raise, and a pass holds at most ``room`` atoms."""

    def __init__(self, room: int = 10**9) -> None:
        self.cutoff, self.elements = 4.0, (18,)
        self.room = room
        self.passes: list[list[int]] = []

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Faulty:
        raise NotImplementedError

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        original = structure.original
        assert original is not None
        fault = FAULTS.get(round(float(original.positions[0, 0])))
        if isinstance(fault, GraphFault):
            raise fault.error
        return Graph(fault, len(structure), 10 * len(structure))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        self.passes.append([graph.atoms for graph in graphs])
        for graph in graphs:
            if isinstance(graph.payload, Exception):
                raise graph.payload
        if sum(graph.atoms for graph in graphs) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return [
            Result(np.nan if graph.payload == "nan" else float(graph.atoms), np.zeros((graph.atoms, 3)), np.zeros(6))
            for graph in graphs
        ]


class Padding(Faulty):
    """Computes passes in few sizes."""

    pads = True

    def padded(self, atoms: int, edges: int) -> tuple[int, int]:
        return to_sizes(atoms, edges)


class GraphFault:
    """An error that building the graph ends with."""

    def __init__(self, error: Exception) -> None:
        self.error = error


FAULTS: dict[int, object] = {
    101: RuntimeError("expected scalar type Float"),
    102: errors.EvaluationFailed("the package's own words"),
    103: MemoryError(),
    104: "nan",
    105: GraphFault(KeyError("no such thing")),
    106: GraphFault(errors.InvalidStructure("not for this package")),
}


@contextmanager
def unguarded(_jobs: Sequence[Job]) -> Iterator[None]:
    yield


def job(atoms: int, edges: int = 0, outputs: frozenset[str] = DEFAULT_OUTPUTS, payload: object = None, alone: bool = False) -> Job:
    structure = Structure(np.full(atoms, 18, dtype=np.int32), np.zeros((atoms, 3)))
    return Job(structure, "", outputs, alone=alone, graph=Graph(payload, atoms, edges))


def structure(atoms: int = 1, fault: int = 0) -> Structure:
    """Argon along z, with the fault that the first coordinate names."""
    positions = np.zeros((atoms, 3))
    positions[:, 2] = 3.5 * np.arange(atoms)
    positions[:, 0] = fault
    return Structure(np.full(atoms, 18, dtype=np.int32), positions)


def engine(force_field: Faulty, edges: int = 10**6) -> Engine:
    return Engine(force_field, catalogue.load().resolve("lj-argon"), Limits(10_000, edges))


def sizes(packs: list[list[Job]]) -> list[list[int]]:
    return [[entry.graph.atoms for entry in entries if entry.graph] for entries in packs]


jobs_of_any_kind = st.lists(
    st.builds(
        job,
        st.integers(1, 300),
        st.integers(0, 5000),
        st.sampled_from([DEFAULT_OUTPUTS, ENERGY, frozenset({"energy", "forces"})]),
        alone=st.sampled_from([False, False, False, True]),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(jobs_of_any_kind)
def test_packing(jobs: list[Job]) -> None:
    packs = pack(jobs, PassSize(128, edges=6000))
    assert sorted(id(entry) for entries in packs for entry in entries) == sorted(map(id, jobs)), "each job is in exactly one pass"
    assert [list(map(id, entries)) for entries in packs] == [list(map(id, e)) for e in pack(jobs, PassSize(128, edges=6000))], (
        "the order is fixed"
    )
    for entries in packs:
        assert len({bool(entry.outputs & GRADIENTS) for entry in entries}) == 1, "gradients are not computed for who wants none"
        assert len(entries) == 1 or not any(entry.alone for entry in entries)
        assert len(entries) == 1 or sum(entry.graph.edges for entry in entries if entry.graph) <= 6000
        order = [next(k for k, other in enumerate(jobs) if other is entry) for entry in entries]
        assert order == sorted(order)
        # No pass is longer than its share, up to half of its largest structure at either end.
        atoms = [entry.graph.atoms for entry in entries if entry.graph]
        assert len(entries) == 1 or sum(atoms) <= 192 + max(atoms)


def test_shares_are_equal() -> None:
    """Twenty structures of eight atoms are one pass of 160 and not one of 128 with a small one behind it."""
    assert sizes(pack([job(8) for _ in range(20)], PassSize(128))) == [[8] * 20]
    assert sizes(pack([job(8) for _ in range(36)], PassSize(128))) == [[8] * 18] * 2


def test_a_large_structure_has_a_pass_of_its_own() -> None:
    assert [1000] in sizes(pack([job(8), job(1000), job(8)], PassSize(128)))


def test_molecules_share_a_longer_pass_than_a_crystal_of_as_many_atoms() -> None:
    """Where a pair costs more than an atom, ten atoms with few neighbours are not as much work as ten with many."""
    size = PassSize(full=0.109, per_atom=0.001, per_edge=0.0001)  # full with ten atoms of 99 neighbours each
    assert len(pack([job(10, 990) for _ in range(8)], size)) == 8
    assert len(pack([job(10, 40) for _ in range(8)], size)) == 1


def test_pairs_close_a_pass() -> None:
    assert sizes(pack([job(1, 600), job(1, 600), job(1, 300)], PassSize(128, edges=1000))) == [[1], [1, 1]]


SIZES = (40, 100, 160, 320)
"""Atoms that passes are padded to."""


def to_sizes(atoms: int, edges: int) -> tuple[int, int]:
    return next((size for size in SIZES if size >= atoms), atoms), edges


def seconds_of(passes: Sequence[Sequence[Job]], size: PassSize) -> float:
    computed = [to_sizes(sum(entry.atoms for entry in entries), sum(entry.edges for entry in entries)) for entries in passes]
    return sum(size.per_pass + size.per_atom * atoms + size.per_edge * edges for atoms, edges in computed)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.builds(job, st.integers(1, 60), st.integers(0, 900)), min_size=1, max_size=9))
def test_padded_passes_take_the_least_time_of_all_ways_to_cut(jobs: list[Job]) -> None:
    size = PassSize(64, per_atom=1.0, per_edge=0.01, edges=2000, per_pass=5.0)
    passes = fill(jobs, size, to_sizes)
    assert [id(entry) for entries in passes for entry in entries] == list(map(id, jobs)), "each once, in order"
    possible = []
    for ends in range(2 ** (len(jobs) - 1)):
        cuts = [k + 1 for k in range(len(jobs) - 1) if ends >> k & 1]
        cut = [jobs[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(jobs)], strict=True)]
        if all(len(entries) == 1 or _fits(entries, size) for entries in cut):
            possible.append(seconds_of(cut, size))
    assert all(len(entries) == 1 or _fits(entries, size) for entries in passes)
    assert seconds_of(passes, size) == pytest.approx(min(possible))


def _fits(entries: Sequence[Job], size: PassSize) -> bool:
    return sum(entry.edges for entry in entries) <= size.edges and sum(map(size.of, entries)) <= LARGEST * size.full


def test_an_engine_fills_the_passes_of_a_family_that_pads() -> None:
    for force_field, computed in ((Faulty(), 200), (Padding(), 140)):
        runtime = engine(force_field)
        runtime.size = PassSize(64, per_pass=1.0)
        jobs = runtime.evaluate([structure(8) for _ in range(16)])
        assert [entry.result.energy for entry in jobs if entry.result] == [8.0] * 16
        assert sum(to_sizes(sum(atoms), 0)[0] for atoms in force_field.passes) == computed, "two of 64 atoms, or 40 or less and 100"
        force_field.passes.clear()
        runtime.size = replace(runtime.size, full=float("inf"))
        runtime.evaluate([structure(8) for _ in range(60)])
        assert force_field.passes == [[8] * 60], "one pass, as a calibration asks for"


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
