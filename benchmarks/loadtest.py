"""``make loadtest``: perf_analyzer over gRPC, structures of mixed sizes, one to 32 requests in flight; CSV, table and plot.

It uses the service that runs on the configured ports; where there is none, it starts its own and stops it.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import metrics, perf_analyzer, report, service, structures
from benchmarks.perf_analyzer import Program
from benchmarks.service import say
from forcefields import catalogue
from forcegate.errors import ForcegateError
from forcegate.structure import from_atoms
from frontend import settings as all_settings
from frontend.settings import Settings

MODELS = "sevennet-0,chgnet-0.3.0"
CONCURRENCY = "1,2,4,8,16,32"
SIZES = (8, 16, 32)
"""Atoms of the structures; neighbours in time differ in size, so every batch is ragged."""
STRUCTURES = 48
TIMEOUT = 300.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the load test and writes its results."""
    parser = argparse.ArgumentParser(prog="make loadtest", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default=MODELS, help="models, separated by commas; lj-argon shows the service without a model")
    parser.add_argument("--concurrency", default=CONCURRENCY, help="requests in flight, separated by commas")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each level takes")
    parser.add_argument("--output", type=Path, help="folder for the results; the default is loadtest in the state folder")
    options = parser.parse_args(arguments)
    service.end_on_sigterm()
    levels = [int(level) for level in options.concurrency.split(",")]
    try:
        settings = all_settings.load()
        names = [catalogue.load().resolve(name).name for name in options.models.split(",")]
        folder = options.output or settings.state / "loadtest"
        folder.mkdir(parents=True, exist_ok=True)
        program = perf_analyzer.ensure(settings.root, say)
        with service.running_or_own(names, folder / "service") as running:
            rows = [row for name in names for row in run(program, running, name, levels, options.seconds, folder)]
    except ForcegateError as error:
        print(error, file=sys.stderr)
        return 1
    for path in write(rows, folder):
        say(f"wrote {path}")
    print((folder / "loadtest.md").read_text())
    return 0


def run(
    program: Program, settings: Settings, model: str, levels: Sequence[int], seconds: float, folder: Path
) -> list[dict[str, Any]]:
    """One row for each level of concurrency.

    Raises:
        SetupError: perf_analyzer failed.
    """
    variant = catalogue.load().resolve(model)
    chosen = [from_atoms(atoms) for atoms in structures.mixture(variant, SIZES, STRUCTURES)]
    data = folder / f"input-{variant.name}.json"
    data.write_text(json.dumps(perf_analyzer.input_data(chosen)))
    url = f"http://127.0.0.1:{settings.metrics_port}/metrics"

    def level(concurrency: int, requests: int) -> tuple[perf_analyzer.Load, float]:
        before = metrics.read(url, variant.name)
        load = perf_analyzer.measure(program, variant.name, settings.grpc_address, data, concurrency, requests, TIMEOUT)
        grown = metrics.read(url, variant.name).since(before)
        return load, metrics.summary(grown, 1.0)["mean_batch_structures"]

    rate = level(1, len(SIZES))[0].structures_per_second  # warm-up
    rows = []
    for concurrency in levels:
        load, batch = level(concurrency, max(2 * concurrency, int(rate * seconds), 2 * len(SIZES)))
        rate = load.structures_per_second
        rows.append({"model": variant.name} | asdict(load) | {"mean_batch": batch})
        say(
            f"{variant.name}, {concurrency} in flight: {rate:.1f} structures/s, p50 {load.p50 * 1e3:.1f} ms, mean batch {batch:.1f}"
        )
    return rows


def write(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes ``loadtest.csv``, ``loadtest.md`` and ``loadtest.png``."""
    paths = [folder / f"loadtest.{kind}" for kind in ("csv", "md", "png")]
    with paths[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    header = [
        "model",
        "in flight",
        "structures/s",
        "p50, ms",
        "p90, ms",
        "p99, ms",
        "queue, ms",
        "model, ms",
        "mean batch",
        "requests",
    ]
    cells = [
        [row["model"], row["concurrency"], f"{row['structures_per_second']:.1f}"]
        + [f"{row[name] * 1e3:.1f}" for name in ("p50", "p90", "p99", "queue", "infer")]
        + [f"{row['mean_batch']:.1f}", row["requests"]]
        for row in rows
    ]
    sizes = ", ".join(str(size) for size in SIZES)
    title = f"perf_analyzer over gRPC, one structure in a request, {sizes} atoms in turn"
    paths[1].write_text(f"# Load test\n\n{title}\n\n{report.table(header, cells)}\n")
    _plot(rows, title, paths[2])
    return paths


def _plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    plt = report.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for place, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        chosen = [row for row in rows if row["model"] == model]
        flight = [row["concurrency"] for row in chosen]
        left.plot(flight, [row["structures_per_second"] for row in chosen], "-o", color=f"C{place}", label=model)
        for name, style in (("p50", "-o"), ("p99", ":^")):
            right.plot(flight, [row[name] * 1e3 for row in chosen], style, color=f"C{place}", label=f"{model}, {name}")
    left.set(xscale="log", xlabel="requests in flight", ylabel="structures/s", ylim=(0, None))
    right.set(xscale="log", yscale="log", xlabel="requests in flight", ylabel="latency, ms")
    for axes in (left, right):
        axes.set_xticks(flight, [str(level) for level in flight])
        axes.minorticks_off()
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
