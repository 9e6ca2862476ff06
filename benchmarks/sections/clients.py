"""How throughput and waiting grow with the number of clients, over gRPC and over REST: closed loops of 8-atom structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import load, report, structures
from benchmarks.clients import Run, grpc_closed_loop, rest_closed_loop
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.service import say
from benchmarks.statistics import take_turns
from forcegate.structure import Structure, from_atoms
from frontend.settings import Settings

NAME = "clients"
TITLE = "Growth with the number of clients, 8 atoms, over 32 gRPC clients of the same model"
ATOMS = 8
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUNDS = 3
"""How often each number of clients has its turn: single runs of the same code differ by 10 to 20 %."""
POOL = 256
"""Different structures; longer runs go through them again."""
Loop = Callable[[Sequence[Structure], int], Run]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model, protocol and number of clients."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings:
            numbers = (1, 32, 256) if plan.quick else NUMBERS
            rows += by_clients(settings, variant_of(model).name, numbers, plan.seconds(4.0, 1.0), 1 if plan.quick else ROUNDS)
    return rows


def by_clients(
    settings: Settings, model: str, numbers: Sequence[int], seconds: float, rounds: int = ROUNDS
) -> list[dict[str, Any]]:
    """Closed loops over gRPC and REST, of every number of clients in turn in each round.

    Args:
        numbers: of clients, in growing order.
        seconds: about how long each run takes; every client has two turns at least, or one where two would take ten times as long.

    Returns:
        For each protocol and number the run of median throughput, and the throughput of all its runs.
    """
    pool = [from_atoms(each) for each in structures.crystals(variant_of(model), ATOMS, POOL)]
    loops: dict[str, Loop] = {
        "grpc": lambda given, number: grpc_closed_loop(settings.grpc_address, model, given, number),
        "rest": lambda given, number: rest_closed_loop(settings.host, settings.port, model, given, number),
    }
    rows = []
    for protocol, loop in loops.items():
        best = loop(several(pool, 16), 2).structures_per_second
        found: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}

        def one(number: int, loop: Loop = loop, found: dict[int, list[dict[str, Any]]] = found) -> float:
            nonlocal best
            turns = 2 if 2 * number < 10 * seconds * best else 1
            given = several(pool, max(turns * number, int(best * seconds), 4))
            run, seen = load.watched(settings, model, lambda: loop(given, number))
            found[number].append(load.row_of(model, run, seen))
            best = max(best, run.structures_per_second)
            return run.structures_per_second

        take_turns({str(number): partial(one, number) for number in numbers}, rounds)
        for number, runs in found.items():
            middle = sorted(runs, key=lambda row: row["structures_per_second"])[len(runs) // 2]
            rounds_of = [row["structures_per_second"] for row in runs]
            rows.append({"protocol": protocol, "clients": number, "rounds": rounds_of} | middle)
            wait = f"{middle['structures_per_second']:.1f} structures/s, p50 {middle['p50_ms']:.1f} ms"
            say(f"{model}, {protocol}, {number} clients: {wait}")
    return rows


def several(pool: Sequence[Structure], count: int) -> list[Structure]:
    """``count`` structures, round and round through the pool."""
    return [pool[k % len(pool)] for k in range(count)]


def over_base(row: dict[str, Any], base: dict[str, Any]) -> float:
    """Its throughput over that of 32 gRPC clients: within the rounds where both are of the same ones, as gRPC's are."""
    if row["protocol"] != base["protocol"] or "rounds" not in row:
        return float(row["structures_per_second"] / base["structures_per_second"])
    return float(median([one / other for one, other in zip(row["rounds"], base["rounds"], strict=True)]))


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio to 32 gRPC clients first."""
    header = ["model", "protocol", "clients", "over 32 gRPC clients", *load.HEADER]
    base = {row["model"]: row for row in rows if row.get("protocol") == "grpc" and row["clients"] == 32}
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", width=len(header)))
            continue
        over = f"**{over_base(row, base[row['model']]):.2f}**" if row["model"] in base else ""
        cells.append([row["model"], row["protocol"], row["clients"], over, *load.cells_of(row)])
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Throughput and median wait against the number of clients."""
    plt = report.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    rows = [row for row in rows if "skipped" not in row]
    for place, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        for protocol, style in (("grpc", "-o"), ("rest", "--s")):
            chosen = [row for row in rows if row["model"] == model and row["protocol"] == protocol]
            numbers, label = [row["clients"] for row in chosen], f"{model}, {protocol}"
            left.plot(numbers, [row["structures_per_second"] for row in chosen], style, color=f"C{place}", label=label)
            right.plot(numbers, [row["p50_ms"] for row in chosen], style, color=f"C{place}", label=label)
    left.set(xscale="log", yscale="log", xlabel="clients", ylabel="structures/s")
    right.set(xscale="log", yscale="log", xlabel="clients", ylabel="p50, ms")
    left.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
