"""What the transport costs: gRPC, and REST with JSON, msgpack and arrays in msgpack, over the best in-process batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report, structures
from benchmarks.clients import ARRAYS, JSON, MSGPACK, Run, grpc_closed_loop, rest_closed_loop
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.sections import families
from benchmarks.service import say
from benchmarks.statistics import median, ratio, take_turns
from benchmarks.worker import Refused, Worker
from forcegate.structure import from_atoms
from frontend.settings import Settings

NAME = "transports"
TITLE = "Transports, 32 clients, over the best in-process batch (aims for 100 atoms: JSON 0.85, msgpack 0.92)"
CLIENTS = 32
CELLS = (8, 32, 100)
WAYS = ("grpc", "rest_json", "rest_msgpack", "rest_arrays")


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model and size."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings, Worker(variant_of(model).name, settings) as worker:
            for atoms in (8, 100) if plan.quick else CELLS:
                try:
                    rows.append(compare(settings, worker, variant_of(model).name, atoms, plan))
                except Refused as error:
                    rows.append({"model": model, "atoms": atoms, "skipped": str(error)})
    return rows


def compare(settings: Settings, worker: Worker, model: str, atoms: int, plan: Plan) -> dict[str, Any]:
    """All transports and the evaluation in process take turns."""
    effort = families.Effort(rounds=2 if plan.quick else 4)
    effort, tried = families.prepared(settings, worker, model, atoms, effort, plan.seconds(8.0, 2.0))
    best = max(tried, key=lambda pack: tried[pack])
    given = [from_atoms(each) for each in structures.crystals(variant_of(model), atoms, effort.served)]
    rest = partial(rest_closed_loop, settings.host, settings.port, model, given, CLIENTS)
    loops: dict[str, Callable[[], Run]] = {
        "grpc": lambda: grpc_closed_loop(settings.grpc_address, model, given, CLIENTS),
        "rest_json": lambda: rest(JSON),
        "rest_msgpack": lambda: rest(MSGPACK),
        "rest_arrays": lambda: rest(ARRAYS),
    }
    ways: dict[str, Callable[[], float]] = {
        name: lambda loop=loop: loop().structures_per_second  # type: ignore[misc]
        for name, loop in loops.items()
    }
    ways["in_process"] = lambda: effort.alone / worker.bare(atoms, effort.alone, max(1, best // atoms))
    rounds = take_turns(ways, effort.rounds)
    row = {
        "model": model,
        "atoms": atoms,
        **{f"{way}_over_in_process": ratio(rounds, way, "in_process") for way in WAYS},
        **{f"{way}_over_grpc": ratio(rounds, way, "grpc") for way in WAYS[1:]},
        "structures_per_second": {way: median(rounds, way) for way in ways},
        "structures": effort.served,
        "rounds": rounds,
    }
    say(f"{model}, {atoms} atoms, over in process: " + ", ".join(f"{way} {row[f'{way}_over_in_process']:.2f}" for way in WAYS))
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios first."""
    header = ["model", "atoms", "gRPC", "JSON", "msgpack", "arrays", "JSON over gRPC", "msgpack over gRPC", "arrays over gRPC"]
    header += ["in process /s", "gRPC /s", "JSON /s", "msgpack /s", "arrays /s", "structures"]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", "atoms", width=len(header)))
            continue
        over = [f"**{row[f'{way}_over_in_process']:.2f}**" for way in WAYS] + [f"{row[f'{way}_over_grpc']:.2f}" for way in WAYS[1:]]
        rates = [f"{row['structures_per_second'][way]:.1f}" for way in ("in_process", *WAYS)]
        cells.append([row["model"], row["atoms"], *over, *rates, row["structures"]])
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The ratios as bars."""
    rows = [row for row in rows if "skipped" not in row]
    labels = [f"{row['model']}\n{row['atoms']} atoms" for row in rows]
    heights = {way.replace("_", " "): [row[f"{way}_over_in_process"] for row in rows] for way in WAYS}
    report.bars(labels, heights, "throughput of 32 clients over in process", path)
