"""How throughput and waiting depend on the sizes of structures: one size at a time, and a mix as in the Materials Project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tritonclient.utils import InferenceServerException

from benchmarks import load, report, structures
from benchmarks.clients import grpc_closed_loop
from benchmarks.plan import ANALYTIC, MODELS, Plan, variant_of
from benchmarks.sections.clients import several
from benchmarks.service import say
from forcegate.structure import from_atoms
from frontend.settings import Settings

NAME = "sizes"
TITLE = "Sizes of structures, 32 gRPC clients, over the atoms a second of 32-atom structures"
SIZES: tuple[int | str, ...] = (2, 8, 32, 100, 400, 1000, "mix")
CLIENTS = 32
POOL = 64


def measure(plan: Plan) -> list[dict[str, Any]]:
    """A row for each model and size; ``mix`` is ``structures.materials_mix``."""
    rows = []
    for model in plan.models(ANALYTIC, *MODELS):
        with plan.serving(model) as settings:
            sizes = (8, 32, "mix") if plan.quick else SIZES
            rows += [one_size(settings, variant_of(model).name, size, plan.seconds(10.0, 2.0)) for size in sizes]
    return rows


def one_size(settings: Settings, model: str, size: int | str, seconds: float) -> dict[str, Any]:
    """A closed loop; one that does not fit into the memory that a model has is noted with the reason."""
    variant = variant_of(model)
    made = structures.materials_mix(variant, POOL) if isinstance(size, str) else structures.crystals(variant, size, POOL)
    pool = [from_atoms(atoms) for atoms in made]
    clients = CLIENTS if max(map(len, pool)) < 1000 else 8
    try:
        rate = grpc_closed_loop(settings.grpc_address, model, pool[:8], 8).structures_per_second
        run, seen = load.over_grpc(settings, model, several(pool, max(clients, int(rate * seconds))), clients)
    except InferenceServerException as error:
        say(f"{model}, {size} atoms: {error}")
        return {"model": model, "atoms": size, "skipped": str(error)}
    say(f"{model}, {size} atoms: {run.atoms_per_second:.0f} atoms/s, mean batch {seen['mean_batch_structures']:.1f}")
    return {"atoms": size, "clients": clients} | load.row_of(model, run, seen)


def table(rows: list[dict[str, Any]]) -> str:
    """The ratio of atoms a second to those of 32-atom structures first."""
    header = ["model", "atoms", "over 32 atoms", *load.HEADER]
    base = {row["model"]: row["atoms_per_second"] for row in rows if row.get("atoms") == 32 and "skipped" not in row}
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", "atoms", width=len(header)))
            continue
        over = f"**{row['atoms_per_second'] / base[row['model']]:.2f}**" if row["model"] in base else ""
        cells.append([row["model"], row["atoms"], over, *load.cells_of(row)])
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Atoms a second against the size; the mix as a line."""
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    rows = [row for row in rows if "skipped" not in row]
    for place, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        chosen = [row for row in rows if row["model"] == model and not isinstance(row["atoms"], str)]
        axes.plot(
            [row["atoms"] for row in chosen], [row["atoms_per_second"] for row in chosen], "-o", color=f"C{place}", label=model
        )
        for row in rows:
            if row["model"] == model and row["atoms"] == "mix":
                axes.axhline(row["atoms_per_second"], color=f"C{place}", linestyle=":", label=f"{model}, mix")
    axes.set(xscale="log", yscale="log", xlabel="atoms in a structure", ylabel="atoms/s")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
