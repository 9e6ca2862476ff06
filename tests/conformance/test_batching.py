"""Batched equals alone: nobody's answer depends on who else is being served.

Random batches go through the real server; Triton's own metrics show that their structures really shared calls and forward passes.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc100, molecule
from ase.data import covalent_radii
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from forcefields.catalogue import parse_elements
from forcegate import evaluate
from forcegate.retries import Attempts
from forcegate.structure import from_atoms
from tests.conformance import cases
from tests.conformance.comparison import ANALYTIC, Tolerance, beyond, deviations
from tests.conformance.environments import checkpoint_of, run_in
from tests.service import RunningService

ELEMENTS = [z for z in parse_elements("1-83,89-94") if z not in (2, 10, 18, 36, 54)]
MOLECULES = ["H2O", "CH4", "NH3", "CO2", "C6H6", "CH3CH2OH", "SO2", "N2", "HCl", "SiH4"]
SIZES = (1, 40)
"""Atoms of a random structure."""


EDGES = {"fcc": 2**0.5, "bcc": 2 / 3**0.5, "rocksalt": 2.0, "cesiumchloride": 2 / 3**0.5, "zincblende": 4 / 3**0.5}
"""Edge of the conventional cell over the nearest distance."""


def crystal(draw: st.DrawFn) -> Atoms:
    """A crystal of one or two random elements, at a nearest distance somewhat larger than the sum of their covalent radii.

    Not much nearer: where atoms are pressed together a model says 1e15 eV, and no absolute tolerance means anything.
    """
    prototype = draw(st.sampled_from(sorted(EDGES)))
    first, second = draw(st.sampled_from(ELEMENTS)), draw(st.sampled_from(ELEMENTS))
    nearest = max(2.4, 1.2 * (covalent_radii[first] + covalent_radii[second]))
    edge = nearest * EDGES[prototype]
    atoms = bulk("Na" if prototype in ("fcc", "bcc") else "NaCl", prototype, a=edge, cubic=draw(st.booleans()))
    atoms.numbers = np.where(atoms.numbers == 11, first, second)
    most = max(1, SIZES[1] // len(atoms))
    repeats = draw(st.sampled_from([r for r in ((1, 1, 1), (2, 1, 1), (1, 2, 2), (2, 2, 2), (3, 1, 3)) if np.prod(r) <= most]))
    return atoms.repeat(repeats)


def slab(draw: st.DrawFn) -> Atoms:
    """A metal's surface, periodic in two directions; its third cell vector is missing as often as not."""
    metal = draw(st.sampled_from(["Cu", "Pd", "Ag", "Pt", "Au", "Ni"]))
    atoms = fcc100(metal, (1, draw(st.integers(1, 3)), draw(st.integers(2, 4))))
    if draw(st.booleans()):
        atoms.center(vacuum=6.0, axis=2)
    return atoms


def isolated(draw: st.DrawFn) -> Atoms:
    """Atoms without neighbours: a rare gas in a wide cell, or single atoms that are far apart."""
    if draw(st.booleans()):
        return Atoms([draw(st.sampled_from(["He", "Ne", "Ar", "Kr", "Xe"]))], cell=[13.0, 14.0, 15.0], pbc=True)
    number = draw(st.integers(1, 3))
    return Atoms(draw(st.lists(st.sampled_from(ELEMENTS), min_size=number, max_size=number)), positions=15.0 * np.eye(3)[:number])


@st.composite
def structures(draw: st.DrawFn) -> Atoms:
    """Any of the above, or a molecule, displaced at random."""
    build = draw(st.sampled_from([crystal, crystal, slab, isolated, lambda draw: molecule(draw(st.sampled_from(MOLECULES)))]))
    return cases.rattled(build(draw), draw(st.integers(0, 10_000)), strain=0.03)


BATCHES = st.lists(structures(), min_size=2, max_size=14)


def answers(batch: list[Atoms], model: str, service: RunningService, in_flight: int) -> list[dict[str, Any]]:
    """Every structure's results; ``in_flight`` 1 sends them one by one."""
    outputs = ("energy", "forces", "stress") + (("magmoms",) if model.startswith("chgnet") else ())
    results = evaluate(batch, model, address=service.grpc, in_flight=in_flight, outputs=outputs)
    return [{"energy": r.energy, "forces": r.forces, "stress": r.stress, **r.extra} for r in results]


def agree(batch: list[Atoms], alone: list[dict[str, Any]], together: list[dict[str, Any]], tolerance: Tolerance) -> None:
    """Each structure of the batch has the same answer both times."""
    for atoms, one, other in zip(batch, alone, together, strict=True):
        note(f"{atoms!r}: {deviations(one, other)}")
        assert beyond(deviations(one, other), tolerance) == {}, atoms


def through_the_server(
    model: str,
    service: RunningService,
    batches: st.SearchStrategy[list[Atoms]],
    tolerance: Tolerance,
    sharing: float,
    units: tuple[str, ...] = ("calls", "passes"),
) -> None:
    """The property; and at least ``sharing`` structures, on average, shared each call of the model and each forward pass."""
    shared = {"structures": 0.0, "calls": 0.0, "passes": 0.0}

    def counted() -> dict[str, float]:
        return {
            "structures": service.metric("nv_inference_count", model=model),
            "calls": service.metric("nv_inference_exec_count", model=model),
            "passes": service.metric("forcegate_pass_atoms_count", model=model),
        }

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(batches)
    def same(batch: list[Atoms]) -> None:
        alone = answers(batch, model, service, in_flight=1)
        before = counted()
        # Twice over: the first structure of a burst finds an idle model and is evaluated by itself.
        together = answers([*batch, *batch], model, service, in_flight=64)
        after = counted()
        for name in shared:
            shared[name] += after[name] - before[name]
        agree([*batch, *batch], [*alone, *alone], together, tolerance)

    same()
    for unit in units:
        assert shared["structures"] / shared[unit] > sharing, shared


@pytest.mark.parametrize("model", ["sevennet-0", "chgnet-0.3.0"])
def test_random_batches(model: str, service: RunningService) -> None:
    through_the_server(model, service, BATCHES, Tolerance(), sharing=1.5)


def test_random_batches_of_argon(service: RunningService) -> None:
    """In float64 the batch makes no difference beyond rounding. So quick a model rarely finds more than two waiting.

    A pass of it costs so little that its calibration may find one structure in each the quickest.
    """
    batches = BATCHES.map(lambda batch: [cases.argon(atoms) for atoms in batch])
    through_the_server("lj-argon", service, batches, ANALYTIC, sharing=1.2, units=("calls",))


def test_a_mixed_batch_of_heads(service: RunningService) -> None:
    """Requests with different heads share a batch, and each gets its own functional's answer."""
    batch = [cases.copper(), cases.perovskite(), cases.water(), cases.slab()]
    alone = {head: evaluate(batch, "sevennet-mf-0", head=head, address=service.grpc, in_flight=1) for head in ("PBE", "R2SCAN")}
    with ThreadPoolExecutor(2) as pool:
        futures = {head: pool.submit(evaluate, batch * 3, "sevennet-mf-0", head=head, address=service.grpc) for head in alone}
    together = {head: future.result() for head, future in futures.items()}
    for head in alone:
        for one, other in zip(alone[head] * 3, together[head], strict=True):
            found = deviations({"energy": one.energy, "forces": one.forces}, {"energy": other.energy, "forces": other.forces})
            assert beyond(found, Tolerance()) == {}
    assert deviations({"energy": alone["PBE"][1].energy}, {"energy": alone["R2SCAN"][1].energy})["energy"] > 1.0


def test_padding_within_one_request(service: RunningService) -> None:
    """A client that puts structures of different sizes into one request, padded, gets what each gets alone."""
    from forcegate.connection import Connection

    batch = [cases.one_atom(), cases.slab(), cases.water(), cases.triclinic(), cases.two_atoms()]
    connection = Connection("sevennet-0", service.grpc)
    request = connection.request([from_atoms(atoms) for atoms in batch], ("energy", "forces", "stress"))
    arrays = connection.infer(request, Attempts(60.0))
    connection.close()
    for row, (atoms, alone) in enumerate(zip(batch, answers(batch, "sevennet-0", service, in_flight=1), strict=True)):
        stress = arrays["stress"][row]
        answer = {
            "energy": arrays["energy"][row, 0],
            "forces": arrays["forces"][row, : len(atoms)],
            "stress": stress if atoms.pbc.all() else None,
        }
        assert beyond(deviations(answer, alone), Tolerance()) == {}
        assert np.isnan(stress).all() != atoms.pbc.all()
        assert not arrays["forces"][row, len(atoms) :].any(), "forces on padding are 0"


def test_the_bias_of_the_first_chgnet() -> None:
    """chgnet-0.2.0 gives a structure without angles another energy among crystals than alone, unless they are kept apart."""
    found = json.loads(run_in("chgnet", "first_chgnet", checkpoint_of("chgnet-0.2.0")).splitlines()[-1])
    assert found["kept apart"] < 1e-5
    assert found["mixed"] > 1e-2, "the package mixes them again without harm: the adapter need not keep them apart any more"
