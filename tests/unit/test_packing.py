"""How a batch is cut into forward passes: equal ones, and where a family pads, those that fill the sizes that it pads to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forcefields.runtime.batch import GRADIENTS, LARGEST, Job, PassSize, fill, pack
from forcefields.runtime.engine import DEFAULT_OUTPUTS
from tests.unit.faulty_force_field import ENERGY, Faulty, engine, job, structure


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


class Padding(Faulty):
    """Computes passes in few sizes."""

    pads = True

    def padded(self, atoms: int, edges: int) -> tuple[int, int]:
        return to_sizes(atoms, edges)


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
    return (
        sum(entry.edges for entry in entries) <= size.edges
        and sum(size.of(entry.atoms, entry.edges) for entry in entries) <= LARGEST * size.full
    )


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
