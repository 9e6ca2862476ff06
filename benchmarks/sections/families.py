"""Served, in process and one by one, for every family: structures per second of 32 gRPC clients against the same structures
evaluated in the family's environment, and by the package's own ASE calculator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import report, structures
from benchmarks.clients import grpc_closed_loop
from benchmarks.load import over_grpc
from benchmarks.plan import MODELS, REAL_SIZE, TINY, Plan, loading, variant_of
from benchmarks.processes import Processes
from benchmarks.service import say
from benchmarks.statistics import Round, median, ratio, take_turns
from benchmarks.worker import Worker
from forcegate.errors import ForcegateError
from forcegate.structure import from_atoms
from frontend.settings import Settings

NAME = "families"
TITLE = (
    "Throughput of 32 gRPC clients over in process, as ratios (aims: 0.95 of the best in process, and never under ASE one by one)"
)
CLIENTS = 32
LEAST = 2 * CLIENTS
"""Structures in the shortest served run."""
PACK_ATOMS = (32, 64, 128, 256, 512)
"""Atoms in one forward pass that the in-process evaluation is tried with; it is then measured with the best of them."""
CELLS = (8, 32)
RATIOS = {"adapter": "in_process_best", "engine": "engine", "calculator": "calculator"}
"""What served is divided by: way of a round -> name of the ratio."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    The numbers of structures are multiples of the number of crystals: the crystals differ in density, and so in cost, and every way
    has to get the same mixture.

    Attributes:
        served: structures in one served run; the 32 clients have them all in flight at least twice.
        alone: structures in one in-process run.
        one_by_one: structures in one run of the package's calculator.
        rounds: how often all of them take turns; half as often for a model whose served runs are long, since no fewer structures
            than 64 show how batches form.
    """

    served: int = 96
    alone: int = 32
    one_by_one: int = 16
    rounds: int = 8
    pack_atoms: tuple[int, ...] = PACK_ATOMS

    def __post_init__(self) -> None:
        for count in (self.served, self.alone, self.one_by_one):
            if count % len(structures.CRYSTALS):
                raise ValueError(f"{count} is not a multiple of {len(structures.CRYSTALS)}, the number of crystals")

    def at(self, rate: float, seconds: float) -> Effort:
        """The same rounds of about ``seconds`` each, for a model that evaluates ``rate`` structures a second."""
        each = len(structures.CRYSTALS)

        def whole(least: int, most: int) -> int:
            return max(least, min(most, each * round(rate * seconds / each)))

        rounds = self.rounds if rate * seconds >= LEAST else max(2, self.rounds // 2)
        return replace(self, served=whole(LEAST, 4096), alone=whole(32, 512), one_by_one=whole(8, 64), rounds=rounds)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row for each model and size of cell. A model that cannot be loaded is noted with the reason."""
    rows = []
    for model in plan.models(*MODELS, *TINY, *REAL_SIZE):
        try:
            rows += _model(plan, variant_of(model).name)
        except ForcegateError as error:
            say(f"{model}: {error}")
            rows.append({"model": model, "skipped": str(error)})
    return rows


def _model(plan: Plan, model: str) -> list[dict[str, Any]]:
    """One model is loaded, measured and unloaded: the machine's memory does not hold all of them."""
    rows = []
    with plan.serving(model) as settings:
        seconds = float(loading(settings, model)["seconds"])
        with Worker(model, settings) as worker:
            for atoms in CELLS[:1] if plan.quick else CELLS:
                row = compare(settings, worker, model, atoms, Effort(rounds=2 if plan.quick else 8), plan.seconds(4.0, 2.0))
                resident = Processes.of(settings).memory().get(model, 0.0)
                rows.append(row | {"load_seconds": seconds, "resident_mb": resident})
    return rows


def compare(settings: Settings, worker: Worker, model: str, atoms: int, effort: Effort, seconds: float) -> dict[str, Any]:
    """Served over in process, in rounds: each ratio is formed within a round, so that a machine that drifts does not shift it.

    Args:
        seconds: about how long one way takes in one round.

    Returns:
        medians over the rounds of structures per second, of the ratios, all rounds, and where the service's time went.
    """
    variant = variant_of(model)
    effort, tried = prepared(settings, worker, model, atoms, effort, seconds)
    best = max(tried, key=lambda pack: tried[pack])
    given = [from_atoms(each) for each in structures.crystals(variant, atoms, effort.served)]
    observed: list[dict[str, float]] = []

    def served() -> float:
        run, seen = over_grpc(settings, model, given, CLIENTS)
        observed.append(seen)
        return run.structures_per_second

    ways: dict[str, Callable[[], float]] = {
        "served": served,
        "engine": lambda: effort.alone / worker.engine(atoms, effort.alone),
        "adapter": lambda: effort.alone / worker.bare(atoms, effort.alone, max(1, best // atoms)),
        "calculator": lambda: effort.one_by_one / worker.calculator(atoms, effort.one_by_one),
    }
    rounds = take_turns(ways, effort.rounds)
    result = {
        "model": model,
        "atoms": atoms,
        **ratios(rounds),
        "structures_per_second": {way: median(rounds, way) for way in ways},
        "best_pack_atoms": best,
        "structures_per_second_by_pack_atoms": tried,
        "service": {name: median(observed, name) for name in observed[0]},
        "structures": {"served": effort.served, "in_process": effort.alone, "calculator": effort.one_by_one},
        "rounds": rounds,
    }
    say(
        f"{model}, {atoms} atoms: served over in process {result['served_over_in_process_best']:.2f} "
        f"(over the runtime {result['served_over_engine']:.2f}, over the calculator {result['served_over_calculator']:.2f})"
    )
    return result


def prepared(
    settings: Settings, worker: Worker, model: str, atoms: int, effort: Effort, seconds: float
) -> tuple[Effort, dict[int, float]]:
    """Everything warmed up, the counts fitted to the model's speed, and structures per second by atoms in a pass."""
    sizes = [pack for pack in effort.pack_atoms if pack >= atoms] or [atoms]
    few = len(structures.CRYSTALS)
    worker.bare(atoms, few, few)
    rate = few / worker.bare(atoms, few, max(1, 128 // atoms))
    effort = effort.at(rate, seconds)
    count = effort.alone if rate * seconds >= effort.alone else 16
    counts = {pack: max(count, few * -(-pack // (atoms * few))) for pack in sizes}
    counts = {pack: number for pack, number in counts.items() if number <= max(32, effort.alone)}
    if variant_of(model).family == "grace":  # which compiles for every shape that it sees for the first time
        for pack, number in counts.items():
            worker.bare(atoms, number, max(1, pack // atoms))
    tried = {pack: number / worker.bare(atoms, number, max(1, pack // atoms)) for pack, number in counts.items()}
    worker.engine(atoms, few)
    worker.calculator(atoms, 2)
    given = [from_atoms(each) for each in structures.crystals(variant_of(model), atoms, 2 * CLIENTS)]
    grpc_closed_loop(settings.grpc_address, model, given, CLIENTS)
    return effort, tried


def ratios(rounds: list[Round]) -> dict[str, float]:
    """Served over each of the others: the median of the ratios within each round."""
    return {f"served_over_{name}": ratio(rounds, "served", way) for way, name in RATIOS.items()}


def _ratio(row: dict[str, Any], way: str, name: str) -> str:
    """The median, and between what it was in the single rounds."""
    least, most = _range(row, way)
    return f"**{row[f'served_over_{name}']:.2f}** ({least:.2f} to {most:.2f})"


def _range(row: dict[str, Any], way: str) -> tuple[float, float]:
    each = [single["served"] / single[way] for single in row["rounds"]]
    return min(each), max(each)


def table(rows: list[dict[str, Any]]) -> str:
    """Ratios first."""
    header = ["model", "atoms", "over best in process", "over the runtime", "over ASE one by one", "served /s", "in process /s"]
    header += ["runtime /s", "ASE /s", "mean batch", "pass, atoms", "best pass", "outside evaluation and graphs", "stall, ms"]
    header += ["load, s", "resident, MB"]
    cells: list[list[object]] = []
    for row in rows:
        if "skipped" in row:
            cells.append(report.skipped(row, "model", width=len(header)))
            continue
        rate, used = row["structures_per_second"], row["service"]
        cells.append(
            [row["model"], row["atoms"]]
            + [_ratio(row, way, name) for way, name in RATIOS.items()]
            + [f"{rate[way]:.2f}" for way in ("served", "adapter", "engine", "calculator")]
            + [f"{used['mean_batch_structures']:.1f}", f"{used['mean_pass_atoms']:.0f}", row["best_pack_atoms"]]
            + [f"{100 * used['share_elsewhere']:.1f} %", f"{used['longest_stall_ms']:.0f}" if "longest_stall_ms" in used else ""]
            + [f"{row['load_seconds']:.1f}", f"{row['resident_mb']:.0f}"]
        )
    return report.table(header, cells)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Two ratios of every model as bars, with what they were in the single rounds as whiskers."""
    rows = [row for row in rows if "skipped" not in row]
    plt = report.pyplot()
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.45 * len(rows)), layout="constrained")
    ways = {"adapter": "the best in-process batch", "calculator": "the package's ASE calculator, one by one"}
    for shift, (way, label) in enumerate(ways.items()):
        places = [-k - 0.4 * (shift - 0.5) for k in range(len(rows))]
        medians = [row[f"served_over_{RATIOS[way]}"] for row in rows]
        axes.barh(places, medians, 0.38, label=f"over {label}")
        for place, middle, row in zip(places, medians, rows, strict=True):
            least, most = _range(row, way)
            axes.plot([least, most], [place, place], color="black", linewidth=1)
            axes.annotate(f"{middle:.2f}", (max(most, middle), place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks([-k for k in range(len(rows))], [f"{row['model']}, {row['atoms']} atoms" for row in rows], fontsize=7)
    axes.set_xlabel("served throughput of 32 gRPC clients, as a ratio: median and range of the rounds")
    axes.legend(loc="lower right", fontsize=7)
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)
