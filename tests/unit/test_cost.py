"""What a pass costs: the estimate of its pairs, and the fit to measured passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, molecule

from forcefields import catalogue
from forcefields.base import ForceField, Graph, Normalised, Result
from forcefields.catalogue import Variant
from forcefields.cost import Cost, estimated_edges, largest_edges
from forcefields.neighbours import neighbour_pairs, neighbours
from forcefields.runtime import calibration
from forcefields.runtime.calibration import Sample
from forcefields.runtime.engine import Engine
from forcefields.runtime.physics import Limits, normalise
from forcegate.structure import from_atoms

ARGON = catalogue.load().resolve("lj-argon")
PASS, ATOM, EDGE = 5e-3, 2e-4, 5e-6
"""s; what the force field below takes."""


class Clockwork(ForceField):
    """Takes a time that is known, and does nothing else."""

    def __init__(self) -> None:
        self.cutoff, self.elements = 6.0, (18,)

    @classmethod
    def load(cls, checkpoint: Path, variant: Variant, device: str) -> Clockwork:
        raise NotImplementedError

    def graph(self, structure: Normalised, head: str) -> Graph:  # noqa: ARG002
        return Graph(None, len(structure), len(neighbour_pairs(structure, self.cutoff)[0]))

    def evaluate(self, graphs: Sequence[Graph], outputs: frozenset[str]) -> list[Result]:  # noqa: ARG002
        time.sleep(PASS + sum(ATOM * graph.atoms + EDGE * graph.edges for graph in graphs))
        return [Result(0.0, np.zeros((graph.atoms, 3)), np.zeros(6)) for graph in graphs]


def engine() -> Engine:
    return Engine(Clockwork(), ARGON, Limits(10_000, 10**6))


@pytest.mark.parametrize(
    ("atoms", "within"),
    [
        (bulk("Cu", cubic=True), 1.2),
        (bulk("NaCl", "rocksalt", a=5.64).repeat(3), 1.3),  # the next shell begins just beyond 6 A
        (fcc100("Al", (3, 3, 4), vacuum=10.0), 1.8),  # half a bond of surface on either side
        (molecule("C6H6"), 2.0),
    ],
    ids=["Cu", "NaCl", "Al slab", "benzene"],
)
def test_the_estimate_is_near_the_true_number_of_pairs(atoms: Atoms, within: float) -> None:
    structure = from_atoms(atoms)
    true = len(neighbours(normalise(structure, 6.0), 6.0).first)
    assert true / within <= estimated_edges(structure, 6.0) <= true * within


def test_nothing_and_a_flat_cell_have_an_estimate_too() -> None:
    assert estimated_edges(from_atoms(Atoms("Ar")), 6.0) == 0
    assert estimated_edges(from_atoms(Atoms("Ar2", positions=[(0, 0, 0), (3, 0, 0)], cell=[5, 0, 0], pbc=True)), 6.0) >= 0


def test_the_fit_finds_what_was_put_in() -> None:
    rows = [(8, 400), (64, 3200), (64, 1600), (128, 6400), (128, 3200)]
    samples = [Sample(atoms, edges, PASS + ATOM * atoms + EDGE * edges) for atoms, edges in rows]
    cost = calibration.fit(samples, engine()).cost
    assert (cost.seconds_per_pass, cost.seconds_per_atom, cost.seconds_per_edge) == pytest.approx((PASS, ATOM, EDGE), rel=1e-6)
    assert cost.seconds(10, 100, passes=2) == pytest.approx(2 * PASS + 10 * ATOM + 100 * EDGE)
    assert Cost.from_dict(cost.as_dict()) == cost


def test_noise_never_makes_a_cost_negative() -> None:
    cost = calibration.fit([Sample(8, 400, 1.0), Sample(64, 3200, 0.5), Sample(128, 3200, 0.4)], engine()).cost
    assert min(cost.seconds_per_pass, cost.seconds_per_atom, cost.seconds_per_edge) >= 0
    assert cost.seconds(64, 3200) > 0


def test_on_a_gpu_passes_are_as_large_as_is_worth_it_and_the_peak_gives_the_bytes() -> None:
    """Saturated at 256 atoms: twice as many take twice as long. A pair takes 1000 bytes, more than the catalogue's 400."""
    samples = [Sample(n, 50 * n, max(n, 256) * 1e-4, peak=50_000 * n) for n in (4, 32, 64, 128, 256, 512, 1024)]
    found = calibration.fit(samples, engine())
    assert found.cost.bytes_per_edge == 1000
    assert found.cost.edges == int(10**6 * ARGON.packing.bytes_per_edge / 1000)
    assert found.size.full == pytest.approx(found.cost.seconds(256, 50 * 256, passes=0))


def test_doubling_goes_on_until_it_brings_nothing_or_does_not_fit() -> None:
    better = [Sample(64, 3000, 1.0), Sample(128, 6000, 1.1), Sample(256, 12_000, 1.2)]
    assert calibration._worth_doubling(better, 10**6, "cpu")
    assert not calibration._worth_doubling(better, 30_000, "cpu")
    assert not calibration._worth_doubling([*better, Sample(512, 24_000, 1.3)], 10**6, "cpu"), "beyond the caches"
    assert calibration._worth_doubling([*better, Sample(512, 24_000, 1.3)], 10**6, "cuda:0")
    assert calibration._worth_doubling([*better, Sample(512, 24_000, 2.4)], 10**6, "cuda:0"), (
        "one that brings nothing may be chance"
    )
    saturated = [*better, Sample(512, 24_000, 2.4), Sample(1024, 48_000, 4.8)]
    assert not calibration._worth_doubling(saturated, 10**6, "cuda:0")


def test_on_a_cpu_too_large_a_pass_is_slower_and_is_not_chosen() -> None:
    samples = [Sample(n, 50 * n, n / rate) for n, rate in ((4, 100.0), (32, 270.0), (64, 272.0), (128, 200.0), (256, 180.0))]
    found = calibration.fit(samples, engine())
    per_atom = found.cost.seconds(1, 50, passes=0)
    assert found.size.full == pytest.approx(32 * per_atom), "64 are faster by less than the difference counts"


def test_a_full_pass_is_no_single_small_crystal_though_chance_made_it_the_fastest() -> None:
    samples = [Sample(n, 50 * n, n / rate) for n, rate in ((4, 110.0), (32, 100.0), (64, 101.0))]
    found = calibration.fit(samples, engine())
    assert found.size.full == pytest.approx(32 * found.cost.seconds(1, 50, passes=0))
    stretched = Sample(32, 20 * 32, 32 / 200.0)
    found = calibration.fit([stretched, *(Sample(n, 50 * n, n / rate) for n, rate in ((32, 90.0), (64, 100.0)))], engine())
    assert found.size.full == pytest.approx(64 * found.cost.seconds(1, 50, passes=0)), "atoms with fewer neighbours are no measure"
    alone = calibration.fit([Sample(4, 200, 0.1)], engine())
    assert alone.size.full == pytest.approx(0.1), "where nothing larger fits, it is"


@pytest.mark.parametrize(
    ("seconds", "settled"), [((0.9,), False), ((0.9, 0.8), True), ((0.4, 0.4), False), ((0.4, 0.4, 0.4), True)]
)
def test_a_long_pass_is_timed_twice_and_a_short_one_until_it_gets_no_faster(seconds: tuple[float, ...], settled: bool) -> None:
    assert calibration._settled(seconds) is settled
    assert not calibration._settled([0.4, 0.3, 0.2, 0.1])


def test_a_model_is_measured_once_and_again_when_something_has_changed(tmp_path: Path) -> None:
    runtime, memory = engine(), tmp_path / "calibrations" / "lj-argon.json"
    first = calibration.calibrated(runtime, "cpu", memory, "key")
    # A sleep is never shorter than was asked for; the runtime's own checks, and a busy machine, make it longer.
    asked = PASS + 64 * ATOM + 3000 * EDGE
    assert 0.9 * asked < first.cost.seconds(64, 3000) < 6 * asked
    assert runtime.size.full == ARGON.packing.atoms, "measuring changes nothing"
    written = memory.stat().st_mtime_ns
    assert calibration.calibrated(runtime, "cpu", memory, "key") == first
    assert memory.stat().st_mtime_ns == written
    calibration.calibrated(runtime, "cpu", memory, "another key")
    assert memory.stat().st_mtime_ns != written


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_structure_that_is_not_finite_counts_as_having_no_pairs() -> None:
    """With or without a scheduler: the model itself refuses it, with an error that says why."""
    good = from_atoms(bulk("Cu", cubic=True))
    bad = from_atoms(Atoms("Cu2", cell=np.full((3, 3), np.nan), pbc=(True, True, False)))
    with pytest.raises(ValueError, match="SVD"):
        estimated_edges(bad, 5.0)
    assert largest_edges((bad,), 5.0) == 0
    assert largest_edges((bad, good), 5.0) == estimated_edges(good, 5.0) > 0


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([2.2e-16, 20, 20], True),
        ([[20, 0, 0], [0, 20, 0], [20, 20, 0.01]], True),
        ([0.1, 20, 0], (True, True, False)),
        ([1e-9, 0, 0], (True, False, False)),
    ],
)
def test_so_does_one_with_a_flat_cell_which_would_have_more_than_any_machine_can_evaluate(cell: object, pbc: object) -> None:
    flat = from_atoms(Atoms("Ar2", positions=[(0, 0, 0), (0, 0, 3.8)], cell=cell, pbc=pbc))
    assert largest_edges((flat,), 8.5) == 0
