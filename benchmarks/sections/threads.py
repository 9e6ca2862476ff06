"""What threads bring and cost on a CPU: a model alone, beside a process that takes a core, and two models that are busy at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.plan import MODELS, Plan, variant_of
from benchmarks.service import say
from benchmarks.statistics import median, ratio, take_turns
from benchmarks.worker import Worker

NAME = "threads"
TITLE = "Threads of a model's process, 8 atoms, in process: throughput over one thread"
ATOMS = 8
PACK = 8
SITUATIONS = ("alone", "beside a busy process", "two at once")
BUSY = "while True: pass"
POLICIES = {"PASSIVE": "wait asleep", "ACTIVE": "wait in a loop"}
"""Values of OMP_WAIT_POLICY. ``PASSIVE`` is what the service sets; where nobody sets it, OpenMP loops for some ms, then sleeps."""


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model, number of threads and way in which threads wait."""
    rows = []
    for model in plan.models(*MODELS):
        # The service makes the checkpoint, and then does nothing.
        with plan.serving(model) as settings, ExitStack() as stack:
            workers: dict[str, list[Worker]] = {}
            for threads, policy in ways():
                variables = {"OMP_WAIT_POLICY": policy}
                workers[label(threads, policy)] = [
                    stack.enter_context(
                        Worker(
                            model,
                            settings.model_copy(update={"threads": threads}),
                            variables,
                            f"-{threads}-{policy.lower()}-{number}",
                        )
                    )
                    for number in (1, 2)
                ]
            rows += compare(model, workers, 2 if plan.quick else 5, plan.seconds(1.0, 0.5))
    return rows


def ways() -> list[tuple[int, str]]:
    """Threads and policies that are compared: one thread, which waits for nobody, and as many as there are cores."""
    cores = len(os.sched_getaffinity(0))
    return [(1, "PASSIVE"), *((cores, policy) for policy in POLICIES if cores > 1)]


def label(threads: int, policy: str) -> str:
    """What a row is called."""
    return f"{threads}, {POLICIES[policy]}" if threads > 1 else "1"


def compare(model: str, workers: dict[str, list[Worker]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """All numbers of threads in all situations take turns.

    Args:
        workers: two for each way, the first of which is used where one is.
        seconds: about how long each takes, alone with one thread.
    """
    for pair in workers.values():
        for worker in pair:
            worker.bare(ATOMS, PACK, PACK)
    first = next(iter(workers.values()))[0]
    count = PACK * max(1, round(seconds / first.bare(ATOMS, PACK, PACK)))

    def alone(pair: list[Worker]) -> float:
        return count / pair[0].bare(ATOMS, count, PACK)

    def beside(pair: list[Worker]) -> float:
        with busy():
            return alone(pair)

    def together(pair: list[Worker]) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(pair)) as callers:
            list(callers.map(lambda worker: worker.bare(ATOMS, count, PACK), pair))
        return len(pair) * count / (time.perf_counter() - started)

    situations: dict[str, Callable[[list[Worker]], float]] = dict(zip(SITUATIONS, (alone, beside, together), strict=True))
    turns = {f"{way}: {situation}": partial(run, pair) for situation, run in situations.items() for way, pair in workers.items()}
    results = take_turns(turns, rounds)
    base = next(iter(workers))
    rows = []
    for way in workers:
        rates = {situation: median(results, f"{way}: {situation}") for situation in SITUATIONS}
        over = {situation: ratio(results, f"{way}: {situation}", f"{base}: {situation}") for situation in SITUATIONS}
        single = [{situation: each[f"{way}: {situation}"] for situation in SITUATIONS} for each in results]
        row = {"model": variant_of(model).name, "threads": way, "over_one": over, "structures_per_second": rates, "rounds": single}
        rows.append(row)
        say(f"{model}, threads {way}, over one: " + ", ".join(f"{situation} {over[situation]:.2f}" for situation in SITUATIONS))
    return rows


@contextmanager
def busy() -> Iterator[None]:
    """A process that takes all of a core meanwhile, as another user's or another model's does."""
    with subprocess.Popen([sys.executable, "-c", BUSY]) as process:
        try:
            yield
        finally:
            process.kill()


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios first."""
    header = ["model", "threads", *SITUATIONS, *(f"{situation}, /s" for situation in SITUATIONS)]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", width=len(header)))
            continue
        over, rates = row["over_one"], row["structures_per_second"]
        cells.append(
            [row["model"], row["threads"]]
            + [f"**{over[situation]:.2f}**" for situation in SITUATIONS]
            + [f"{rates[situation]:.1f}" for situation in SITUATIONS]
        )
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The ratios as bars."""
    rows = [row for row in rows if "skipped" not in row]
    labels = [f"{row['model']}\n{row['threads']}" for row in rows]
    heights = {situation: [row["over_one"][situation] for row in rows] for situation in SITUATIONS}
    report.bars(labels, heights, "throughput over one thread", path)
