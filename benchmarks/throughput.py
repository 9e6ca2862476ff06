"""Structures per second: 32 gRPC clients of the service, against the same structures evaluated in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import metrics, structures
from benchmarks.clients import grpc_closed_loop
from benchmarks.service import say
from benchmarks.worker import Worker
from forcefields import catalogue
from forcegate.structure import from_atoms
from frontend.settings import Settings

CLIENTS = 32
PACK_ATOMS = (32, 64, 128, 256, 512)
"""Atoms in one forward pass that the in-process evaluation is tried with; it is then measured with the best of them."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    The numbers of structures are multiples of the number of crystals: the crystals differ in density, and so in cost, and every way
    has to get the same mixture.

    Attributes:
        served: structures in one served run; the 32 clients have them all in flight at least twice.
        alone: structures in one in-process run.
        one_by_one: structures in one run of the package's calculator.
        rounds: how often all of them take turns.
    """

    served: int = 96
    alone: int = 32
    one_by_one: int = 16
    rounds: int = 4
    pack_atoms: tuple[int, ...] = PACK_ATOMS

    def __post_init__(self) -> None:
        for count in (self.served, self.alone, self.one_by_one):
            if count % len(structures.CRYSTALS):
                raise ValueError(f"{count} is not a multiple of {len(structures.CRYSTALS)}, the number of crystals")


def compare(settings: Settings, worker: Worker, model: str, atoms: int, effort: Effort) -> dict[str, Any]:
    """Served over in process, in rounds: each ratio is formed within a round, so that a machine that drifts does not shift it.

    Returns:
        medians over the rounds of structures per second, of the ratios, all rounds, and where the service's time went.
    """
    variant = catalogue.load().resolve(model)
    given = [from_atoms(each) for each in structures.crystals(variant, atoms, effort.served)]
    shares: list[dict[str, float]] = []

    def served() -> float:
        before = metrics.read(_metrics(settings), variant.name)
        run = grpc_closed_loop(settings.grpc_address, variant.name, given, CLIENTS)
        shares.append(metrics.summary(metrics.read(_metrics(settings), variant.name).since(before), run.seconds))
        return run.structures_per_second

    grpc_closed_loop(settings.grpc_address, variant.name, given[: max(8, CLIENTS)], CLIENTS)  # warm-up
    worker.engine(atoms, min(8, effort.alone))
    worker.calculator(atoms, 2)
    tried = {pack: effort.alone / worker.bare(atoms, effort.alone, max(1, pack // atoms)) for pack in effort.pack_atoms}
    best = max(tried, key=lambda pack: tried[pack])
    ways: dict[str, Callable[[], float]] = {
        "served": served,
        "engine": lambda: effort.alone / worker.engine(atoms, effort.alone),
        "adapter": lambda: effort.alone / worker.bare(atoms, effort.alone, max(1, best // atoms)),
        "calculator": lambda: effort.one_by_one / worker.calculator(atoms, effort.one_by_one),
    }
    rounds = take_turns(ways, effort.rounds)
    result = {
        "model": variant.name,
        "atoms": atoms,
        **ratios(rounds),
        "structures_per_second": {way: _median(rounds, way) for way in ways},
        "best_pack_atoms": best,
        "structures_per_second_by_pack_atoms": tried,
        "service": {name: _median(shares, name) for name in shares[0]},
        "rounds": rounds,
    }
    say(
        f"{variant.name}, {atoms} atoms: served over in process {result['served_over_in_process_best']:.2f} "
        f"(over the runtime {result['served_over_engine']:.2f}, over the calculator {result['served_over_calculator']:.2f})"
    )
    return result


def ratios(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Served over each of the others: the median of the ratios within each round."""
    names = {"adapter": "in_process_best", "engine": "engine", "calculator": "calculator"}
    return {f"served_over_{name}": _median([{way: r["served"] / r[way]} for r in rounds], way) for way, name in names.items()}


def take_turns(ways: dict[str, Callable[[], float]], rounds: int) -> list[dict[str, float]]:
    """Every way once in each round; every other round in the opposite order."""
    results = []
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        results.append({way: ways[way]() for way in order})
    return results


def _metrics(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.metrics_port}/metrics"


def _median(rounds: list[dict[str, float]], name: str) -> float:
    return float(np.median([values[name] for values in rounds]))
