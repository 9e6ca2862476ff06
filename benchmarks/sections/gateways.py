"""What further gateway processes bring: single points of 8 argon atoms over REST, with one gateway and with several.

The ratio says something of the gateways where the machine has cores to spare for them, the model, Triton and the clients, of which
each needs one; the row says how many there were.
"""

from __future__ import annotations

import os
from typing import Any

from benchmarks import load, report, structures
from benchmarks.clients import JSON, rest_closed_loop
from benchmarks.plan import ANALYTIC, Plan, variant_of
from benchmarks.sections.clients import several
from benchmarks.service import say
from benchmarks.statistics import median
from forcegate.structure import from_atoms

NAME = "gateways"
TITLE = "Several gateway processes, lj-argon, 8 atoms, REST JSON"
NUMBERS = (1, 2, 4)
CLIENTS = 128


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each number of gateways."""
    rows: list[dict[str, Any]] = []
    pool = [from_atoms(atoms) for atoms in structures.crystals(variant_of(ANALYTIC), 8, 256)]
    given = several(pool, max(4 * CLIENTS, round(1000 * plan.seconds(5.0, 1.0))))
    for gateways in NUMBERS[:2] if plan.quick else NUMBERS:
        with plan.serving(ANALYTIC, gateways=gateways) as settings:
            rounds = []
            for _ in range(2 if plan.quick else 5):
                run, seen = load.watched(
                    settings,
                    ANALYTIC,
                    lambda settings=settings: rest_closed_loop(  # type: ignore[misc]
                        settings.host, settings.port, ANALYTIC, given, CLIENTS, JSON
                    ),
                )
                rounds.append({"structures_per_second": run.structures_per_second, **run.waits} | seen)
        row = {"gateways": gateways, "cores": len(os.sched_getaffinity(0)), "structures": len(given)}
        row |= {name: median(rounds, name) for name in rounds[0]}
        row["over_one"] = row["structures_per_second"] / (rows[0] if rows else row)["structures_per_second"]
        rows.append(row)
        say(f"gateways, {gateways}: {row['structures_per_second']:.0f}/s, {row['over_one']:.2f} of one")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Throughput over that of one gateway first."""
    header = [
        "gateways",
        "cores",
        "over one",
        "single points /s",
        "p50, ms",
        "p99, ms",
        "CPU gateways, ms",
        "mean batch",
        "single points",
    ]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, width=len(header)))
            continue
        figures = [f"{row['structures_per_second']:.0f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"]
        figures += [f"{row['cpu_ms_gateway']:.3f}", f"{row['mean_batch_structures']:.1f}"]
        cells.append([row["gateways"], row["cores"], f"**{row['over_one']:.2f}**", *figures, row["structures"]])
    return report.table(header, cells)
