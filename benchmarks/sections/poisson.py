"""What users wait for who do not know of each other: Poisson arrivals at 70 % of the capacity, against a lone client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load, report, structures
from benchmarks.arrivals import grpc_open_loop, ideal_latencies, poisson
from benchmarks.clients import grpc_closed_loop
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.sections.clients import several
from benchmarks.service import say
from benchmarks.statistics import waits
from forcegate.structure import Structure, from_atoms
from frontend.settings import Settings

NAME = "poisson"
TITLE = "Poisson arrivals at 70 % of the capacity (aims: p95 below 4 times the lone client's median, no stall over 100 ms)"
SHARE = 0.7
POOL = 256
CLIENTS = 32


def measure(plan: Plan) -> list[dict[str, Any]]:
    """For each model structures of 8 atoms, and the mix of sizes."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings:
            variant = variant_of(model)
            for kind in ("8",) if plan.quick else ("8", "mix"):
                made = structures.materials_mix(variant, POOL) if kind == "mix" else structures.crystals(variant, 8, POOL)
                pool = [from_atoms(atoms) for atoms in made]
                rows.append({"atoms": kind} | open_loop(settings, variant.name, pool, plan.seconds(45.0, 6.0)))
    return rows


def open_loop(settings: Settings, model: str, pool: Sequence[Structure], seconds: float) -> dict[str, Any]:
    """The capacity in a closed loop, the lone client's latency, then ``seconds`` of arrivals.

    The capacity is that of the same structures, measured just before: a machine that is slower than it was a minute ago would
    otherwise be asked for more than 70 %.
    """
    address = settings.grpc_address
    rate = grpc_closed_loop(address, model, several(pool, CLIENTS), 8).structures_per_second
    lone = grpc_closed_loop(address, model, several(pool, max(16, int(rate * min(seconds, 15.0) / 2))), 1)
    capacity = grpc_closed_loop(address, model, several(pool, max(2 * CLIENTS, int(rate * seconds / 3))), CLIENTS)
    asked = SHARE * capacity.structures_per_second
    given = several(pool, max(32, int(asked * seconds)))
    moments = poisson(asked, len(given))
    # As long as they last; then by chance, of the same pool.
    alone = np.random.default_rng(4).choice(lone.latencies, len(given))
    alone[: len(lone.latencies)] = lone.latencies[: len(given)]
    ideal = waits(ideal_latencies(moments, alone, max(1.0, capacity.structures_per_second * float(lone.latencies.mean()))))
    run, seen = load.watched(settings, model, lambda: grpc_open_loop(address, model, given, moments))
    row = load.row_of(model, run, seen) | {
        "lone_p50_ms": lone.waits["p50_ms"],
        "lone_p95_ms": lone.waits["p95_ms"],
        "capacity": capacity.structures_per_second,
        "asked": asked,
        "p95_over_lone": run.waits["p95_ms"] / lone.waits["p50_ms"],
        "ideal_p95_ms": ideal["p95_ms"],
        "p95_over_ideal": run.waits["p95_ms"] / ideal["p95_ms"],
        "latencies_ms": np.sort(run.latencies * 1e3)[:: max(1, len(run.latencies) // 200)].tolist(),
    }
    say(f"{model}: p95 {row['p95_ms']:.1f} ms at {asked:.1f}/s, {row['p95_over_lone']:.1f} times a lone client's median")
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio to the lone client first."""
    header = ["model", "atoms", "p95 over lone p50", "over an ideal server's p95", "ideal p95, ms", "lone p50, ms", "lone p95, ms"]
    header += ["capacity /s", "asked /s", *load.HEADER]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", width=len(header)))
            continue
        figures = [f"{row[name]:.1f}" for name in ("lone_p50_ms", "lone_p95_ms", "capacity", "asked")]
        ratios = [f"**{row['p95_over_lone']:.2f}**", f"**{row['p95_over_ideal']:.2f}**", f"{row['ideal_p95_ms']:.1f}"]
        cells.append([row["model"], row["atoms"], *ratios, *figures, *load.cells_of(row)])
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """How many requests waited for longer than a time."""
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    for place, row in enumerate(row for row in rows if "skipped" not in row):
        times = np.array(row["latencies_ms"]) / row["lone_p50_ms"]
        axes.plot(times, 1 - np.arange(len(times)) / len(times), color=f"C{place}", label=f"{row['model']}, {row['atoms']}")
    axes.axhline(0.05, color="grey", linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="wait over a lone client's median", ylabel="share of requests that waited longer")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
