"""What one gateway process can do: single points of 8 argon atoms over REST, and where the processor's time goes."""

from __future__ import annotations

from typing import Any

from benchmarks import load, report, structures
from benchmarks.clients import JSON, MSGPACK, rest_closed_loop
from benchmarks.plan import ANALYTIC, Plan, variant_of
from benchmarks.sections.clients import several
from benchmarks.service import say
from benchmarks.statistics import median
from forcegate.structure import from_atoms

NAME = "gateway"
TITLE = "One gateway process, lj-argon, 8 atoms (aim: 1,500 single points for each second of the gateway's own processor time)"
CLIENTS = (32, 128)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each encoding and number of clients."""
    rows = []
    with plan.serving(ANALYTIC) as settings:
        pool = [from_atoms(atoms) for atoms in structures.crystals(variant_of(ANALYTIC), 8, 256)]
        for media in (JSON, MSGPACK):
            for clients in CLIENTS:
                count = max(4 * clients, round(1000 * plan.seconds(5.0, 1.0)))
                rounds = []
                for _ in range(2 if plan.quick else 5):
                    given = several(pool, count)
                    run, seen = load.watched(
                        settings,
                        ANALYTIC,
                        lambda given=given, clients=clients, media=media: rest_closed_loop(  # type: ignore[misc]
                            settings.host, settings.port, ANALYTIC, given, clients, media
                        ),
                    )
                    rounds.append({"structures_per_second": run.structures_per_second, **run.waits} | seen)
                row = {"media": media, "clients": clients, "structures": count} | {name: median(rounds, name) for name in rounds[0]}
                row["per_core"] = 1e3 / row["cpu_ms_gateway"]
                rows.append(row)
                say(f"gateway, {media}, {clients} clients: {row['structures_per_second']:.0f}/s, {row['per_core']:.0f} a core")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Single points a second of the gateway's processor time first, then the split of that time."""
    header = ["body", "clients", "single points a core", "single points /s", "p50, ms", "p99, ms", "CPU gateway, ms"]
    header += ["CPU Triton, ms", "CPU model, ms", "mean batch", "single points"]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, width=len(header)))
            continue
        figures = [f"{row['structures_per_second']:.0f}", f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"]
        split = [f"{row[f'cpu_ms_{kind}']:.3f}" for kind in ("gateway", "tritonserver", "model")]
        batch = f"{row['mean_batch_structures']:.1f}"
        cells.append([row["media"], row["clients"], f"**{row['per_core']:.0f}**", *figures, *split, batch, row["structures"]])
    return report.table(header, cells)
