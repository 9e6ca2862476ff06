"""Batches form by themselves: independent clients, one structure at a time each, share calls of the model."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from forcegate import ForcegateCalculator
from tests.service import RunningService

CLIENTS = 32
EACH = 3


def crystals() -> list[Atoms]:
    """Cells of 2 to 16 atoms, each displaced in its own way."""
    found = []
    for k in range(CLIENTS):
        atoms = bulk("NaCl", "rocksalt", a=5.64) * (1, 1 + k % 2, 1 + k % 4)
        atoms.rattle(0.05, seed=k)
        found.append(atoms)
    return found


@pytest.mark.parametrize("model", ["chgnet-0.3.0", "sevennet-0"])
def test_32_clients_of_different_sizes_share_batches(service: RunningService, model: str) -> None:
    structures = crystals()
    assert len({len(atoms) for atoms in structures}) >= 4
    alone = ForcegateCalculator(model, address=service.grpc, timeout=120)
    expected = alone.get_potential_energy(structures[3].copy())
    before = counts(service, model)
    energies: dict[int, list[float]] = {k: [] for k in range(CLIENTS)}
    ready = threading.Barrier(CLIENTS)

    def client(k: int) -> None:
        calculator = ForcegateCalculator(model, address=service.grpc, timeout=120)
        ready.wait()
        for _ in range(EACH):
            calculator.reset()
            energies[k].append(calculator.get_potential_energy(structures[k].copy()))

    threads = [threading.Thread(target=client, args=(k,)) for k in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    structures_done, calls, atoms = (after - b for after, b in zip(counts(service, model), before, strict=True))
    assert structures_done == CLIENTS * EACH
    assert structures_done / calls > 4, f"{structures_done:.0f} structures in {calls:.0f} calls"
    assert atoms == EACH * sum(len(a) for a in structures)
    for k, values in energies.items():
        assert len(values) == EACH
        assert np.ptp(values) / len(structures[k]) < 1e-5, "the same structure in different company"
    assert abs(energies[3][0] - expected) / len(structures[3]) < 1e-5


def counts(service: RunningService, model: str) -> tuple[float, float, float]:
    """Structures, calls and atoms, from the metrics of the model's own process."""
    return (
        service.metric("forcegate_batch_structures_sum", model=model),
        service.metric("forcegate_batch_structures_count", model=model),
        service.metric("forcegate_atoms", model=model),
    )


def test_the_models_metrics_tell_what_was_refused_and_why(service: RunningService) -> None:
    before = service.metric("forcegate_rejected", model="lj-argon", code="unsupported_element")
    calculator = ForcegateCalculator("lj-argon", address=service.grpc)
    with pytest.raises(Exception, match="was not trained on Cu"):
        calculator.get_potential_energy(bulk("Cu"))
    assert service.metric("forcegate_rejected", model="lj-argon", code="unsupported_element") == before + 1
    for name in ("forcegate_evaluation_seconds", "forcegate_edges", "forcegate_pass_atoms_sum"):
        assert service.metric(name, model="chgnet-0.3.0") > 0
