"""``make bench``: the figures of the service as ratios, in one run; JSON, Markdown tables and plots.

Services of its own are started on free ports, with one thread for each model process, so that model and load generator do not
share a processor core; the in-process evaluation runs with the same variables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import report, service
from benchmarks.plan import STATE, Plan
from benchmarks.service import say
from forcegate.errors import ForcegateError, SetupError

SECTIONS = (
    "families",
    "peers",
    "transports",
    "clients",
    "sizes",
    "latency",
    "threads",
    "poisson",
    "relaxations",
    "tasks",
    "gateway",
    "gateways",
    "gpu",
    "soak",
)
"""In the order in which they run and are reported; each is a module of ``benchmarks.sections``."""
ALSO = {"throughput": "families"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark and writes its results."""
    options = _options(arguments)
    names = [ALSO.get(name, name) for name in options.sections.split(",")]
    if unknown := sorted(set(names) - set(SECTIONS)):
        print(f"There is no section {', '.join(unknown)}. There are {', '.join(SECTIONS)}.", file=sys.stderr)
        return 2
    sections = [import_module(f"benchmarks.sections.{name}") for name in SECTIONS if name in names]
    service.end_on_sigterm()
    try:
        plan = Plan.make([name for name in options.models.split(",") if name], options.quick, options.minutes, options.state)
        results = measure(plan, sections)
    except ForcegateError as error:
        print(error, file=sys.stderr)
        return 1
    machine = results["machine"]
    folder = options.output or Path("var/bench" if options.quick else "benchmarks/results")
    name = options.name or f"{machine['date']}-{machine['cores']}-cores"
    if options.add and (earlier := folder / f"{name}.json").exists():
        results = report.added(json.loads(earlier.read_text()), results)
        sections = [import_module(f"benchmarks.sections.{name}") for name in SECTIONS if name in results["sections"]]
    for path in report.write(results, sections, folder, name):
        say(f"wrote {path}")
    print((folder / f"{name}.md").read_text())
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="sections to measure, separated by commas")
    parser.add_argument("--models", default="", help="models to measure, separated by commas, in place of each section's own")
    parser.add_argument("--quick", action="store_true", help="rough figures, written to var/bench")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the soak takes")
    parser.add_argument("--state", type=Path, default=STATE, help="state folder of the services that are measured")
    parser.add_argument("--output", type=Path, help="folder for the results")
    parser.add_argument(
        "--add", action="store_true", help="keep what an earlier run of that name measured of other models and sections"
    )
    parser.add_argument("--name", default="", help="name of the files, in place of date and cores")
    return parser.parse_args(arguments)


def measure(plan: Plan, sections: Sequence[Any]) -> dict[str, Any]:
    """All figures, as they are written to the JSON file. A section that cannot be measured says so in one line."""
    started = time.monotonic()
    results: dict[str, Any] = {"machine": machine(), "quick": plan.quick, "settings": plan.overrides, "sections": {}}
    for section in sections:
        say(f"section {section.NAME}")
        try:
            results["sections"][section.NAME] = section.measure(plan)
        except SetupError as error:
            say(f"{section.NAME}: {error}")
            results["sections"][section.NAME] = [{"skipped": str(error)}]
    return results | {"seconds": round(time.monotonic() - started)}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
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
