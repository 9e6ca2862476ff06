"""The queue of tasks: how soon a task starts, how many a second go through, and many relaxations at once over ASE alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import queued_relaxations, report
from benchmarks.plan import Plan
from benchmarks.postgres import create, postgres, programs
from benchmarks.service import say
from frontend.settings import PREFIX, Settings
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Options

NAME = "tasks"
TITLE = (
    "The queue of tasks: trivial work through one worker, and 64 relaxations at once over ASE one by one, with /health meanwhile"
)
REAL = "chgnet-0.3.0"
"""The model of the relaxations, unless others are asked for."""
ROOT = Path(__file__).parents[2]


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Trivial work on SQLite, and on Postgres where there is one; then relaxations."""
    return [*_databases(plan), *(queued_relaxations.compare(plan, model) for model in plan.models(REAL))]


def _databases(plan: Plan) -> list[dict[str, Any]]:
    lone, many = (20, 100) if plan.quick else (100, 1000)
    rows = [{"database": "sqlite"} | _measured("", lone, many)]
    if programs() is None:
        return [*rows, {"database": "postgres", "skipped": "there is no Postgres on this machine"}]
    with postgres() as server:
        return [*rows, {"database": "postgres"} | _measured(create(server, "tasks"), lone, many)]


def _measured(database_url: str, lone: int, many: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(state=Path(folder), database_url=database_url, max_tasks_per_user=10 * many)
        with _worker(settings):
            row = asyncio.run(_through(settings, lone, many))
    name = database_url.partition(":")[0] or "sqlite"
    say(f"tasks on {name}: start after {row['start_p50_ms']:.0f} ms, {row['per_second']:.0f}/s")
    return row


@contextmanager
def _worker(settings: Settings) -> Iterator[None]:
    """The worker of the tests, whose kind ``count`` takes no time."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    variables |= {PREFIX + "STATE": str(settings.state), PREFIX + "DATABASE_URL": settings.database_url}
    with (settings.state / "worker.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "tests.tasks.worker"], env=variables, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


async def _through(settings: Settings, lone: int, many: int) -> dict[str, Any]:
    tasks = DurableTasks(settings)
    try:

        async def one() -> str:
            return (await tasks.submit("count", {}, [], Options(), "bench")).id

        await tasks.wait(await one(), 120)  # the worker is there
        starts = []
        for _ in range(lone):
            view = await tasks.wait(await one(), 60)
            starts.append(1e3 * ((view.started or 0) - view.created))
        begun = time.monotonic()
        ids = await asyncio.gather(*(one() for _ in range(many)))
        submitted = time.monotonic()
        for task in ids:
            await tasks.wait(task, 600)
        ended = time.monotonic()
    finally:
        await tasks.close()
    return {
        "start_p50_ms": float(np.percentile(starts, 50)),
        "start_p95_ms": float(np.percentile(starts, 95)),
        "submitted_per_second": many / (submitted - begun),
        "per_second": many / (ended - begun),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds to the start, and rates; then relaxations."""
    header = ["database", "start p50, ms", "start p95, ms", "submitted /s", "finished /s"]
    names = ("start_p50_ms", "start_p95_ms", "submitted_per_second", "per_second")
    cells: list[list[object]] = []
    for row in (each for each in rows if "model" not in each):
        if "skipped" in row:
            cells.append(report.skipped(row, "database", width=len(header)))
        else:
            cells.append([row["database"], *(f"{row[name]:.0f}" for name in names)])
    relaxed = [each for each in rows if "model" in each]
    return report.table(header, cells) + ("\n\n" + _relaxations(relaxed) if relaxed else "")


def _relaxations(rows: list[dict[str, Any]]) -> str:
    header = ["model", "relaxations", "an hour, queued", "an hour, ASE one by one", "ratio", "/health p50, ms", "/health p99, ms"]
    cells: list[list[object]] = [
        [
            row["model"],
            row["relaxations"],
            f"{row['an_hour']:.0f}",
            f"{row['an_hour_one_by_one']:.0f}",
            f"{row['queued_over_one_by_one']:.2f}",
            f"{row['health_p50_ms']:.1f}",
            f"{row['health_p99_ms']:.0f}",
        ]
        for row in rows
    ]
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Waits and rates by database, and relaxations over ASE one by one with the waits of /health beside them."""
    databases = [row for row in rows if "model" not in row and "skipped" not in row]
    relaxed = [row for row in rows if "model" in row]
    plt = report.pyplot()
    figure, (starts, rates, ratios, waits) = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
    names = [row["database"] for row in databases]
    models = [row["model"] for row in relaxed]
    _bars(starts, databases, names, {"start_p50_ms": "p50", "start_p95_ms": "p95"}, "from submission to start, ms")
    _bars(rates, databases, names, {"submitted_per_second": "submitted", "per_second": "finished"}, "tasks a second")
    _bars(ratios, relaxed, models, {"queued_over_one_by_one": "queued"}, "relaxations over ASE one by one")
    ratios.axhline(1.0, color="black", linewidth=0.8)
    _bars(waits, relaxed, models, {"health_p50_ms": "p50", "health_p99_ms": "p99"}, "/health meanwhile, ms")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axes: Any, rows: list[dict[str, Any]], names: list[str], values: dict[str, str], title: str) -> None:
    width = 0.8 / len(values)
    for shift, (value, label) in enumerate(values.items()):
        places = [number + width * (shift - (len(values) - 1) / 2) for number in range(len(rows))]
        axes.bar_label(axes.bar(places, [row[value] for row in rows], width, label=label), fmt="%.3g", fontsize=7)
    axes.set_xticks(range(len(names)), names, fontsize=7)
    axes.set_title(title, fontsize=8)
    axes.margins(y=0.3)
    if len(values) > 1:
        axes.legend(fontsize=7)
