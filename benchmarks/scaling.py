"""How throughput and waiting grow with the number of clients, over gRPC and over REST."""

from __future__ import annotations

from typing import Any

from benchmarks import structures
from benchmarks.clients import Run, grpc_closed_loop, rest_closed_loop
from benchmarks.service import say
from forcefields import catalogue
from forcegate.structure import from_atoms
from frontend.settings import Settings

ATOMS = 8


def by_clients(settings: Settings, model: str, clients: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """Structures per second and median latency of closed loops of 8-atom structures.

    Args:
        clients: numbers of clients, in growing order.
        seconds: about how long each run takes; every client has two turns at least, or one where two would take ten times as long.
    """
    variant = catalogue.load().resolve(model)
    address = settings.grpc_address
    pool = [from_atoms(each) for each in structures.crystals(variant, ATOMS, 256)]

    def grpc(count: int, number: int) -> Run:
        return grpc_closed_loop(address, variant.name, _several(pool, count), number)

    def rest(count: int, number: int) -> Run:
        return rest_closed_loop(settings.host, settings.port, variant.name, _several(pool, count), number)

    results = []
    for name, loop in (("grpc", grpc), ("rest", rest)):
        rate = loop(8, 1).structures_per_second
        for number in clients:
            turns = 2 if 2 * number < 10 * seconds * rate else 1
            run = loop(max(turns * number, int(rate * seconds), 4), number)
            rate = max(rate, run.structures_per_second)
            results.append(
                {
                    "model": variant.name,
                    "protocol": name,
                    "clients": number,
                    "structures": len(run.latencies),
                    "structures_per_second": run.structures_per_second,
                    "p50_ms": run.p50 * 1e3,
                    "longest_ms": float(run.latencies.max()) * 1e3,
                }
            )
            rate_and_wait = f"{run.structures_per_second:.1f} structures/s, p50 {run.p50 * 1e3:.1f} ms"
            say(f"{variant.name}, {name}, {number} clients: {rate_and_wait}")
    return results


def _several(pool: list[Any], count: int) -> list[Any]:
    return [pool[k % len(pool)] for k in range(count)]
