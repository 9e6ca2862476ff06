"""``python -m docs.speed RESULTS.json``: docs/speed.json and its picture, from the section ``families`` of a benchmark.

docs/models.md shows both. Models that are served with random weights in the size of published ones stand for those: the time of a
pass does not depend on what the weights are.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import pyplot
from forcefields import catalogue

HERE = Path(__file__).parent
DATA, PICTURE = HERE / "speed.json", HERE / "speed.png"
RANDOM = "random-"


def collected(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows: machine, date, and a row for each model that is not a tiny one."""
    variants = catalogue.load().variants
    rows = [
        {
            "model": row["model"].removeprefix(RANDOM),
            "random_weights": row["model"].startswith(RANDOM),
            "family": variants[row["model"]].family,
            "atoms": row["atoms"],
            "structures_per_second": round(row["structures_per_second"]["served"], 2),
            "resident_mb": round(row["resident_mb"]),
            "load_seconds": round(row["load_seconds"], 1),
        }
        for row in results["sections"]["families"]
        if "skipped" not in row and not row["model"].startswith("tiny-")
    ]
    machine = results["machine"]
    return {"machine": machine["processor"], "date": machine["date"], "threads": results["settings"]["threads"], "models": rows}


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Structures a second over resident memory, a colour for each family."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    rows: Sequence[Mapping[str, Any]] = [row for row in data["models"] if row["atoms"] == 8]
    for place, family in enumerate(dict.fromkeys(row["family"] for row in rows)):
        for row in (row for row in rows if row["family"] == family):
            marker = "o" if row["random_weights"] else "s"
            axes.plot(row["resident_mb"], row["structures_per_second"], marker, color=f"C{place}", markersize=9)
            axes.annotate(
                row["model"],
                (row["resident_mb"], row["structures_per_second"]),
                textcoords="offset points",
                xytext=(8, 4),
                fontsize=8,
            )
    axes.set(xscale="log", yscale="log", xlabel="resident memory of the model's process, MB", ylabel="8-atom structures a second")
    axes.set_title(
        f"Served on one core of {data['machine']}, {data['date']}\nsquares: published weights; circles: random ones of that size"
    )
    axes.margins(x=0.25, y=0.15)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Writes both files."""
    data = collected(json.loads(Path(sys.argv[1]).read_text()))
    DATA.write_text(json.dumps(data, indent=1) + "\n")
    draw(data, PICTURE)


if __name__ == "__main__":
    main()
