"""Clients that keep a service busy while a test hurts it, and remember every answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
from ase import Atoms

from forcegate import ForcegateCalculator
from forcegate.structure import from_atoms, to_mapping
from tests.service import RunningService


@dataclass
class Load:
    """What the clients have seen: energies, and whatever was not one."""

    energies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, answers: int, timeout: float = 30) -> None:
        """Returns when that many further answers have come."""
        target, deadline = len(self.energies) + answers, time.monotonic() + timeout
        while len(self.energies) < target:
            assert time.monotonic() < deadline, f"no {answers} answers within {timeout} s; failures: {self.failures[:3]}"
            time.sleep(0.01)


@contextmanager
def clients(service: RunningService, model: str, atoms: Atoms, rest: int = 4, grpc: int = 4) -> Iterator[Load]:
    """Runs REST and gRPC clients, each with one request at a time, until the block ends."""
    load = Load()
    threads = [threading.Thread(target=_repeat, args=(load, _rest(service, model, atoms))) for _ in range(rest)]
    threads += [threading.Thread(target=_repeat, args=(load, _grpc(service, model, atoms))) for _ in range(grpc)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(90)


def _repeat(load: Load, ask: Callable[[], float]) -> None:
    while not load.stop.is_set():
        started = time.monotonic()
        try:
            load.energies.append(ask())
        except Exception as error:
            load.failures.append(f"{type(error).__name__}: {error}")
            time.sleep(0.05)
        load.slowest = max(load.slowest, time.monotonic() - started)


def _rest(service: RunningService, model: str, atoms: Atoms) -> Callable[[], float]:
    client = httpx.Client(timeout=90)
    body = {"model_name": model, "atoms": to_mapping(from_atoms(atoms))}

    def ask() -> float:
        answer = client.post(f"{service.url}/api/v1/single_point", json=body)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        return float(answer.json()["energy"])

    return ask


def _grpc(service: RunningService, model: str, atoms: Atoms) -> Callable[[], float]:
    calculator = ForcegateCalculator(model, address=service.grpc, timeout=60)

    def ask() -> float:
        fresh = atoms.copy()
        calculator.reset()
        return float(calculator.get_potential_energy(fresh))

    return ask
