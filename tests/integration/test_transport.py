"""Every tensor of the contract crosses Triton unharmed, whichever library carries it (forcefields/runtime/transport.py).

With numpy 2 the stub of Triton 2.51 hands out inputs of which every element equals the first, and sends outputs that are empty:
so all values differ here, and all of them are compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from ase import Atoms

from forcegate import evaluate
from forcegate.connection import Connection
from forcegate.contract import VOIGT
from forcegate.retries import Attempts
from forcegate.structure import from_atoms
from tests.service import ROOT, RunningService, serving

OUTPUTS = ("energy", "forces", "stress", "energies", "magmoms", "charges")
CARRIERS = ("echo-torch", "echo-tensorflow")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(tmp_path_factory.mktemp("carriers"), CARRIERS, families=ROOT / "tests" / "carriers") as running:
        yield running


def sent(atoms: int, pbc: tuple[bool, bool, bool], charge: int, spin: int) -> Atoms:
    """A structure no two of whose numbers are equal."""
    generator = np.random.default_rng(atoms)
    cell = np.diag([30.0, 31.0, 32.0]) + generator.uniform(-1, 1, (3, 3))
    return Atoms(
        generator.permutation(np.arange(1, 119))[:atoms],
        scaled_positions=generator.permutation(np.linspace(0.01, 0.99, 3 * atoms)).reshape(atoms, 3),
        cell=cell,
        pbc=pbc,
        info={"charge": charge, "spin": spin},
    )


STRUCTURES = [
    sent(7, (True, True, True), 3, 2),
    sent(1, (True, True, True), -2, 1),
    sent(40, (True, True, True), 0, 5),
    sent(5, (True, False, True), 1, 4),
    sent(3, (False, False, False), -1, 3),
    sent(4, (False, True, False), 7, 6),
]


def as_sent(atoms: Atoms, energy: float, forces: np.ndarray, stress: np.ndarray | None, extra: dict[str, np.ndarray]) -> None:
    """Every number is the one that was sent."""
    assert energy == 1e6 * atoms.info["charge"] + 1e3 * atoms.info["spin"] + float(atoms.pbc @ [1, 2, 4])
    np.testing.assert_array_equal(forces, atoms.positions)
    np.testing.assert_array_equal(extra["energies"], atoms.numbers)
    np.testing.assert_array_equal(extra["magmoms"], np.arange(len(atoms)) + 0.5)
    if atoms.pbc.all():
        assert stress is not None
        np.testing.assert_array_equal(stress, [atoms.cell.array[i, j] for i, j in VOIGT])
    else:
        assert stress is None or np.isnan(stress).all()
    lower = np.array([atoms.cell.array[j, i] for i, j in VOIGT[3:]] + [0.0] * len(atoms))
    np.testing.assert_array_equal(extra["charges"], lower[: len(atoms)])


@pytest.mark.parametrize("model", CARRIERS)
def test_requests_of_their_own(model: str, service: RunningService) -> None:
    """Many requests at once, of different lengths."""
    results = evaluate(STRUCTURES * 5, model, address=service.grpc, outputs=OUTPUTS)
    for atoms, result in zip(STRUCTURES * 5, results, strict=True):
        as_sent(atoms, result.energy, result.forces, result.stress, result.extra)


@pytest.mark.parametrize("model", CARRIERS)
def test_one_padded_request(model: str, service: RunningService) -> None:
    """All structures in one request, padded to the longest."""
    connection = Connection(model, service.grpc)
    arrays = connection.infer(connection.request([from_atoms(atoms) for atoms in STRUCTURES], OUTPUTS), Attempts(60.0))
    connection.close()
    for row, atoms in enumerate(STRUCTURES):
        extra = {name: arrays[name][row, : len(atoms)] for name in OUTPUTS[3:]}
        as_sent(atoms, arrays["energy"][row, 0], arrays["forces"][row, : len(atoms)], arrays["stress"][row], extra)
        for name in ("forces", *OUTPUTS[3:]):
            assert not arrays[name][row, len(atoms) :].any(), "padding is 0"


def test_each_environment_has_the_library_that_it_is_to_be_tested_with() -> None:
    """Otherwise the two models above are one and the same test."""
    for family, library in (("lennard_jones", "torch"), ("grace", "tensorflow")):
        packages = next((ROOT / "environments" / family / "lib").glob("python3*/site-packages"))
        assert [name for name in ("torch", "tensorflow") if (packages / name).is_dir()] == [library]
