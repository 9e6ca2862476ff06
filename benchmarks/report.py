"""The results as JSON, as one Markdown document with the ratios first, and as one plot for each section that draws one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from benchmarks.statistics import rounded


class Section(Protocol):
    """A module of ``benchmarks.sections``."""

    NAME: str
    TITLE: str

    def table(self, rows: list[dict[str, Any]]) -> str:
        """The rows in Markdown."""


def added(earlier: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Both runs as one: rows of the later one replace those of the same model, or the whole section where rows have no model."""
    sections = dict(earlier["sections"])
    for name, rows in results["sections"].items():
        new = {row.get("model") for row in rows}
        sections[name] = [row for row in sections.get(name, []) if row.get("model") not in new] + rows
    load = max(run["machine"]["load_before"] for run in (earlier, results))
    return results | {
        "machine": results["machine"] | {"load_before": load},
        "sections": sections,
        "seconds": earlier["seconds"] + results["seconds"],
        "runs": earlier.get("runs", 1) + 1,
    }


def write(results: dict[str, Any], sections: Sequence[Any], folder: Path, name: str) -> list[Path]:
    """Writes ``<name>.json``, ``<name>.md`` and ``<name>-<section>.png``, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (data := folder / f"{name}.json").write_text(json.dumps(rounded(results), indent=1) + "\n")
    paths = [data]
    pictures: dict[str, str] = {}
    for section in sections:
        if hasattr(section, "plot") and any("skipped" not in row for row in results["sections"][section.NAME]):
            paths.append(folder / f"{name}-{section.NAME}.png")
            section.plot(results["sections"][section.NAME], paths[-1])
            pictures[section.NAME] = paths[-1].name
    (text := folder / f"{name}.md").write_text(markdown(results, sections, pictures))
    return [data, text, *paths[1:]]


def markdown(results: dict[str, Any], sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """All tables."""
    machine, settings = results["machine"], results["settings"]
    parts = [
        f"# Served and in process, {machine['date']}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; model processes on {settings['device']} "
        f"with {settings['threads']} thread, clients, gateway and tritonserver on what is left; load average before: "
        f"{machine['load_before']}. {results['seconds']} s in all"
        + (f", in {results['runs']} runs" if "runs" in results else "")
        + (", quick ones: rough figures." if results["quick"] else "."),
    ]
    for section in sections:
        parts.append(f"## {section.TITLE}")
        if section.NAME in pictures:
            parts.append(f"![{section.NAME}]({pictures[section.NAME]})")
        parts.append(section.table(results["sections"][section.NAME]))
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def skipped(row: Mapping[str, Any], *first: str, width: int) -> list[object]:
    """The cells of a row that has a reason in place of its figures."""
    cells: list[object] = [row.get(name, "") for name in first]
    return [*cells, row["skipped"], *[""] * (width - len(first) - 1)]


def bars(labels: Sequence[str], heights: Mapping[str, Sequence[float]], ylabel: str, path: Path) -> None:
    """A plot of ratios: a group of bars for each label, one for each of ``heights``, with a line at 1."""
    plt = pyplot()
    width = 0.88 / len(heights)
    figure, axes = plt.subplots(figsize=(1.6 + 1.0 * len(labels), 4), layout="constrained")
    for number, (name, each) in enumerate(heights.items()):
        places = [k + width * (number - (len(heights) - 1) / 2) for k in range(len(labels))]
        axes.bar_label(axes.bar(places, each, 0.9 * width, label=name), fmt="%.2f", fontsize=6)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylabel(ylabel)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
