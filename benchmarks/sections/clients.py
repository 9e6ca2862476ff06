"""How throughput and waiting grow with the number of clients, over gRPC and over REST: closed loops of 8-atom structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import load, report, structures
from benchmarks.clients import Run, grpc_closed_loop, rest_closed_loop
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.service import say
from forcegate.structure import Structure, from_atoms
from frontend.settings import Settings

NAME = "clients"
TITLE = "Growth with the number of clients, 8 atoms, over 32 gRPC clients of the same model"
ATOMS = 8
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
POOL = 256
"""Different structures; longer runs go through them again."""
Loop = Callable[[Sequence[Structure], int], Run]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model, protocol and number of clients."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings:
            numbers = (1, 32, 256) if plan.quick else NUMBERS
            rows += by_clients(settings, variant_of(model).name, numbers, plan.seconds(4.0, 1.0))
    return rows


def by_clients(settings: Settings, model: str, numbers: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Closed loops over gRPC and REST.

    Args:
        numbers: of clients, in growing order.
        seconds: about how long each run takes; every client has two turns at least, or one where two would take ten times as long.
    """
    pool = [from_atoms(each) for each in structures.crystals(variant_of(model), ATOMS, POOL)]
    loops: dict[str, Loop] = {
        "grpc": lambda given, number: grpc_closed_loop(settings.grpc_address, model, given, number),
        "rest": lambda given, number: rest_closed_loop(settings.host, settings.port, model, given, number),
    }
    rows = []
    for protocol, loop in loops.items():
        rate = loop(several(pool, 16), 2).structures_per_second
        for number in numbers:
            turns = 2 if 2 * number < 10 * seconds * rate else 1
            given = several(pool, max(turns * number, int(rate * seconds), 4))
            run, seen = load.watched(settings, model, lambda given=given, number=number, loop=loop: loop(given, number))  # type: ignore[misc]
            rate = max(rate, run.structures_per_second)
            rows.append({"protocol": protocol, "clients": number} | load.row_of(model, run, seen))
            wait = f"{run.structures_per_second:.1f} structures/s, p50 {run.waits['p50_ms']:.1f} ms"
            say(f"{model}, {protocol}, {number} clients: {wait}")
    return rows


def several(pool: Sequence[Structure], count: int) -> list[Structure]:
    """``count`` structures, round and round through the pool."""
    return [pool[k % len(pool)] for k in range(count)]


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio to 32 gRPC clients first."""
    header = ["model", "protocol", "clients", "over 32 gRPC clients", *load.HEADER]
    base = {row["model"]: row["structures_per_second"] for row in rows if row.get("protocol") == "grpc" and row["clients"] == 32}
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", width=len(header)))
            continue
        over = f"**{row['structures_per_second'] / base[row['model']]:.2f}**" if row["model"] in base else ""
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
