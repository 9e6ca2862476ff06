"""The results of an endurance run in Markdown, and memory over time as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import report

WIDEST = 900
"""Samples of one process that are kept for the picture."""


def markdown(results: Mapping[str, Any], picture: str) -> str:
    """Counts first, then waits, faults and memory."""
    machine, run, tasks = results["machine"], results["run"], results["tasks"]
    parts = [
        f"# {run['clients']} clients for {run['seconds'] / 60:.1f} minutes while processes are killed, {machine['date']}",
        _circumstances(machine, run),
        report.table(
            ["calls", "lost", "wrong answers", "bad structures refused", "tasks", "lost", "done twice", "interrupted"],
            [
                [
                    sum(row["calls"] for row in results["waits"].values()),
                    f"**{len(results['lost'])}**",
                    f"**{len(results['wrong'])}**",
                    sum(results["refused"].values()),
                    tasks["sent"],
                    f"**{tasks['lost']}**",
                    f"**{tasks['double']}**",
                    tasks["interrupted"],
                ]
            ],
        ),
        _waits(results),
        _faults(results),
        _memory(results),
        f"![resident memory over time; dashed lines are kills]({picture})",
    ]
    return "\n\n".join(parts) + "\n"


def _circumstances(machine: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; models {', '.join(run['models'])}. "
        f"Load average before: {machine['load_before']}, mean meanwhile: {run['mean_load']:.1f}. {run['remark']}"
    )


def _waits(results: Mapping[str, Any]) -> str:
    header = ["client", "calls", "p50, ms", "p99, ms", "longest, ms"]
    rows = [
        [kind, row["calls"], *(f"{row[name]:.0f}" for name in ("p50_ms", "p99_ms", "longest_ms"))]
        for kind, row in sorted(results["waits"].items())
    ]
    return report.table(header, rows)


def _faults(results: Mapping[str, Any]) -> str:
    header = ["killed", "times", "those who waited then had their answer after, median, s", "longest, s"]
    rows = [
        [row["target"], row["times"], *(f"{row[name]:.1f}" for name in ("median_wait_s", "longest_wait_s"))]
        for row in results["faults"]
    ]
    return report.table(header, rows)


def _memory(results: Mapping[str, Any]) -> str:
    header = ["process", "lives", "longest, s", "first third, MB", "last third, MB", "most, MB", "within lives, MB an hour"]
    header += ["open files, first", "last"]
    rows = []
    for row in results["memory"]:
        within = row["mb_an_hour_within"]
        figures = [f"{row[name]:.0f}" for name in ("longest_life_s", "first_mb", "last_mb", "most_mb")]
        files = [f"{row[name]:.0f}" for name in ("first_files", "last_files")]
        rows.append([row["process"], row["lives"], *figures, "" if within is None else f"{within:.0f}", *files])
    shared = results["shared_memory"]
    return report.table(header, rows) + (
        f"\n\nShared memory: {shared['first_regions']:.0f} regions in the first third, {shared['last_regions']:.0f} in the last, "
        f"{shared['left']} after the stop."
    )


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Memory of every process over time; each kill is a line."""
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for place, row in enumerate(results["memory"]):
        label = row["process"]
        for life in row["samples"]:
            times, sizes = zip(*life, strict=True)
            axes.plot([at / 60 for at in times], sizes, color=f"C{place}", linewidth=1, label=label)
            label = None
    for at, _ in results["run"]["kills"]:
        axes.axvline(at / 60, color="0.8", linewidth=0.5, linestyle="--", zorder=0)
    machine, run = results["machine"], results["run"]
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.set_title(f"{run['clients']} clients, {len(run['kills'])} kills; {machine['processor']}, {machine['date']}", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def thinned(results: dict[str, Any]) -> dict[str, Any]:
    """The same with so many samples of each process as a picture can show."""
    rows = []
    for row in results["memory"]:
        step = max(1, sum(map(len, row["samples"])) // WIDEST)
        rows.append(row | {"samples": [life[::step] for life in row["samples"]]})
    return results | {"memory": rows}
