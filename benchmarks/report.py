"""The results as JSON, as Markdown tables with the ratios first, and as plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

AIMS = {"in process": 0.95, "calculator": 1.0, "gRPC": 1.5, "REST": 3.0}


def write(results: dict[str, Any], folder: Path, name: str) -> list[Path]:
    """Writes ``<name>.json``, ``<name>.md`` and two plots, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (data := folder / f"{name}.json").write_text(json.dumps(_rounded(results), indent=1) + "\n")
    (text := folder / f"{name}.md").write_text(markdown(results))
    ratios, growth = folder / f"{name}-ratios.png", folder / f"{name}-growth.png"
    _plot_ratios(results["throughput"], ratios)
    _plot_growth(results["by_clients"], results["by_atoms"], growth)
    return [data, text, ratios, growth]


def markdown(results: dict[str, Any]) -> str:
    """All tables."""
    machine, settings = results["machine"], results["settings"]
    parts = [
        f"# Served and in process, {machine['date']}",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB; model processes on {settings['device']} "
        f"with {settings['threads']} thread, clients, gateway and tritonserver on what is left; load average before: "
        f"{machine['load_before']}. {results['seconds']} s in all" + (", a quick run: rough figures." if results["quick"] else "."),
        f"## Throughput of 32 gRPC clients, as ratios (aims: at least {AIMS['in process']}, and never under {AIMS['calculator']})",
        _throughput(results["throughput"]),
        f"## Latency of one caller, 8 atoms (aims: gRPC adds {AIMS['gRPC']} ms, REST {AIMS['REST']} ms more)",
        _latency(results["latency"]),
        "## Growth with the number of clients, 8 atoms",
        _clients(results["by_clients"]),
        "## Growth with the number of atoms, one caller",
        _latency(results["by_atoms"]),
    ]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _throughput(entries: list[dict[str, Any]]) -> str:
    header = ["model", "atoms", "over best in process", "over the runtime", "over ASE calculator"]
    header += ["served /s", "in process /s", "runtime /s", "calculator /s", "batch", "pass, atoms", "outside evaluation and graphs"]
    rows = []
    for entry in entries:
        rate, used = entry["structures_per_second"], entry["service"]
        ratios = [f"**{entry[f'served_over_{way}']:.2f}**" for way in ("in_process_best", "engine", "calculator")]
        rates = [f"{rate[way]:.2f}" for way in ("served", "adapter", "engine", "calculator")]
        shares = [
            f"{used['mean_batch_structures']:.1f}",
            f"{used['mean_pass_atoms']:.0f}",
            f"{100 * used['share_elsewhere']:.1f} %",
        ]
        rows.append([entry["model"], entry["atoms"], *ratios, *rates, *shares])
    return table(header, rows)


def _latency(entries: list[dict[str, Any]]) -> str:
    header = [
        "model",
        "atoms",
        "gRPC adds, ms",
        "REST adds to gRPC, ms",
        "in process p50, ms",
        "gRPC p50, ms",
        "REST p50, ms",
        "calls",
    ]
    rows = []
    for entry in entries:
        if "skipped" in entry:
            rows.append([entry["model"], entry["atoms"], entry["skipped"], *[""] * (len(header) - 3)])
            continue
        p50 = [f"{entry['p50_ms'][way]:.2f}" for way in ("in_process", "grpc", "rest")]
        adds = [f"{entry['grpc_over_in_process_ms']:.2f}", f"{entry['rest_over_grpc_ms']:.2f}"]
        rows.append([entry["model"], entry["atoms"], *adds, *p50, entry["calls"]])
    return table(header, rows)


def _clients(entries: list[dict[str, Any]]) -> str:
    header = ["model", "protocol", "clients", "structures/s", "p50, ms", "longest, ms", "structures"]
    keys = ("model", "protocol", "clients")
    figures = ("structures_per_second", "p50_ms", "longest_ms")
    rows = [[*(entry[key] for key in keys), *(f"{entry[key]:.1f}" for key in figures), entry["structures"]] for entry in entries]
    return table(header, rows)


def _rounded(value: Any) -> Any:
    """Four significant digits: more would be noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _plot_ratios(entries: list[dict[str, Any]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    ways = {"in_process_best": "over the best in-process batch", "calculator": "over the package's ASE calculator"}
    for shift, (way, label) in enumerate(ways.items()):
        places = [k + 0.4 * (shift - 0.5) for k in range(len(entries))]
        bars = axes.bar(places, [entry[f"served_over_{way}"] for entry in entries], 0.38, label=label)
        axes.bar_label(bars, fmt="%.2f")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(entries)), [f"{entry['model']}\n{entry['atoms']} atoms" for entry in entries])
    axes.set_ylabel("served throughput, ratio")
    axes.set_title("32 gRPC clients against evaluation in process")
    axes.legend(loc="upper left")
    axes.margins(y=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _plot_growth(by_clients: list[dict[str, Any]], by_atoms: list[dict[str, Any]], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for place, model in enumerate(dict.fromkeys(entry["model"] for entry in by_clients)):
        colour = f"C{place}"
        for protocol, style in (("grpc", "-o"), ("rest", "--s")):
            chosen = [entry for entry in by_clients if entry["model"] == model and entry["protocol"] == protocol]
            clients = [entry["clients"] for entry in chosen]
            axes[0].plot(
                clients, [entry["structures_per_second"] for entry in chosen], style, color=colour, label=f"{model}, {protocol}"
            )
            axes[1].plot(clients, [entry["p50_ms"] for entry in chosen], style, color=colour, label=f"{model}, {protocol}")
        sized = [entry for entry in by_atoms if entry["model"] == model and "skipped" not in entry]
        for way, style in (("in_process", "-o"), ("grpc", ":^"), ("rest", "--s")):
            values = [entry["p50_ms"][way] for entry in sized]
            axes[2].plot(
                [entry["atoms"] for entry in sized], values, style, color=colour, label=f"{model}, {way.replace('_', ' ')}"
            )
    labels = [("clients", "structures/s"), ("clients", "p50, ms"), ("atoms, one caller", "p50, ms")]
    for each, (below, beside) in zip(axes, labels, strict=True):
        each.set(xscale="log", yscale="log", xlabel=below, ylabel=beside)
        each.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pyplot() -> Any:
    """matplotlib's pyplot, drawing into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
