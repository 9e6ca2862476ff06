"""``make bench``: the figures of the service as ratios, in one run; JSON, a Markdown table and plots.

A service of its own is started on free ports, with one thread for each model process, so that model and load generator do not
share a processor core; the in-process evaluation runs with the same variables.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import latency, report, scaling, service, throughput
from benchmarks.service import say
from benchmarks.throughput import Effort
from benchmarks.worker import Worker
from forcefields import catalogue
from forcegate.errors import SetupError
from frontend import settings as all_settings
from frontend.settings import Settings

ANALYTIC = "lj-argon"
"""A model that takes no time: it shows what the service itself costs."""
MODELS = ("sevennet-0", "chgnet-0.3.0")
CELLS = (8, 32)
THREADS = 1
MEMORY_SHARE = 0.25
"""Of the free memory, for one model's evaluation: the service's models and the in-process one each keep their peak."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and writes its results."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a rough run of under two minutes, written to var/bench")
    parser.add_argument("--models", default=",".join(MODELS), help="models to compare, separated by commas")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    models = tuple(catalogue.load().resolve(name).name for name in options.models.split(","))
    folder = options.output or Path("var/bench" if options.quick else "benchmarks/results")
    service.end_on_sigterm()
    try:
        results = measure(models, options.quick)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    for path in report.write(results, folder, f"{results['machine']['date']}-{results['machine']['cores']}-cores"):
        say(f"wrote {path}")
    print(report.markdown(results))
    return 0


def measure(models: Sequence[str], quick: bool) -> dict[str, Any]:
    """All figures, as they are written to the JSON file.

    Raises:
        SetupError: something cannot be installed or started.
    """
    started = time.monotonic()
    machine = _machine()
    free = psutil.virtual_memory().available / 1e9
    overrides = {"threads": THREADS, "memory_gb": round(MEMORY_SHARE * free, 1), "device": "cpu"}
    results: dict[str, Any] = {"machine": machine, "quick": quick, "settings": overrides}
    found: dict[str, list[dict[str, Any]]] = {"throughput": [], "latency": [], "by_atoms": [], "by_clients": []}
    with service.own((ANALYTIC, *models), Path("var/bench/service"), all_settings.load(), **overrides) as settings:
        for model in (ANALYTIC, *models):
            with Worker(model, settings) as worker:
                _measure_model(settings, worker, model, quick, found)
        for model in (ANALYTIC, *models):
            found["by_clients"] += scaling.by_clients(settings, model, _clients(model, quick), 1.0 if quick else 4.0)
    return results | found | {"seconds": round(time.monotonic() - started)}


def _measure_model(settings: Settings, worker: Worker, model: str, quick: bool, found: dict[str, list[dict[str, Any]]]) -> None:
    if model != ANALYTIC:
        for atoms in CELLS[:1] if quick else CELLS:
            found["throughput"].append(throughput.compare(settings, worker, model, atoms, _effort(atoms, quick)))
    caller = latency.Caller(settings, worker, model)
    try:
        found["latency"].append(latency.added(caller, 8, 2.0 if quick else 8.0))
        sizes = (64, 216) if quick else (64, 216, 512, 1000)
        found["by_atoms"] += [found["latency"][-1], *latency.by_size(caller, sizes, 1.0 if quick else 3.0)]
    finally:
        caller.close()


def _clients(model: str, quick: bool) -> tuple[int, ...]:
    if quick:
        return (1, 32, 256) if model == ANALYTIC else (1, 32)
    return (1, 8, 32, 256)


def _effort(atoms: int, quick: bool) -> Effort:
    if quick:
        return Effort(served=64, alone=32, one_by_one=8, rounds=2, pack_atoms=(128,))
    return Effort(rounds=5) if atoms <= 8 else Effort(served=64, alone=16, one_by_one=8, rounds=4)


def _machine() -> dict[str, Any]:
    with open("/proc/cpuinfo") as file:
        processor = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "forcegate": version("forcegate"),
    }


if __name__ == "__main__":
    sys.exit(main())
