"""``forcegate compare``: what several models say of one structure, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from forcegate.cli.terminal import FAILED, GPA, Json, Models, Url, console, report

VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


def compare(
    file: Annotated[Path, typer.Argument(help="A structure file; the last structure of several.", show_default=False)],
    model: Models,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """Compare models on one structure, over REST: energies, forces, stress, and how far they disagree.

    Total energies of different models have different zeros; the atomization energies, taken from each model's own isolated atoms,
    can be compared. With models that were trained on crystals alone that zero is an extrapolation.
    """
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        answer = client.multi_model(file, model)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        show(answer, str(file))
    if any(outcome["status"] != "success" for outcome in answer["results"]):
        raise typer.Exit(FAILED)


def show(answer: Mapping[str, Any], title: str) -> None:
    """Prints the answer of ``multi_model``: one column for each model, then one line for each pair."""
    from forcegate.client import typed

    good = [outcome for outcome in answer["results"] if outcome["status"] == "success"]
    for outcome in answer["results"]:
        if outcome["status"] != "success":
            report(typed(422, outcome["error"], answer.get("request_id", "")), outcome["model"])
    if not good:
        return
    console().print(_quantities(good, answer["comparison"], title))
    for line in _disagreement(answer["comparison"]):
        console().print(line, soft_wrap=True)


def _quantities(outcomes: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("quantity")
    table.add_column("unit")
    for outcome in outcomes:
        table.add_column(outcome["model"], justify="right")
    results = [outcome["result"] for outcome in outcomes]
    aligned = list(comparison["energy"]["atomization_energy_per_atom"].values())
    table.add_row("functional", "", *(result["provenance"]["functional"] for result in results))
    table.add_row("checkpoint", "sha256", *(result["provenance"]["checkpoint_sha256"][:12] for result in results))
    table.add_row("energy", "eV", *(_number(result["energy"], 5) for result in results))
    table.add_row("energy per atom", "eV", *(_number(result["energy_per_atom"], 5) for result in results))
    table.add_row("atomization energy per atom", "eV", *(_number(value, 4) for value in aligned))
    table.add_row("largest force", "eV/A", *(_number(result["max_force"], 4) for result in results))
    for axis, component in enumerate(VOIGT):
        stresses = [result["stress"] and result["stress"][axis] * GPA for result in results]
        table.add_row(f"stress {component}", "GPa", *(_number(value, 3) for value in stresses))
    pressures = [result["stress"] and -sum(result["stress"][:3]) / 3 * GPA for result in results]
    table.add_row("pressure", "GPa", *(_number(value, 3) for value in pressures))
    return table


def _disagreement(comparison: Mapping[str, Any]) -> Iterator[str]:
    for pair in (comparison["forces"] or {"pairs": []})["pairs"]:
        cosine = "" if pair["cosine"] is None else f", cosine {pair['cosine']:.4f}"
        yield (
            f"Forces, {' and '.join(pair['models'])}: RMSE {pair['rmse']:.4f} eV/A, largest difference {pair['max']:.4f} eV/A "
            f"at atom {pair['max_atom']}{cosine}."
        )
    for pair in (comparison["stress"] or {"pairs": []})["pairs"]:
        yield (
            f"Stress, {' and '.join(pair['models'])}: RMSE {pair['rmse_gpa']:.3f} GPa, "
            f"largest difference {pair['max_gpa']:.3f} GPa, pressure differs by {pair['pressure_difference_gpa']:+.3f} GPa."
        )
    for name, elements in comparison["elements_outside"].items():
        if elements:
            yield f"[yellow]{name} was not trained on {', '.join(elements)}.[/]"


def _number(value: float | None, digits: int) -> str:
    # Adding 0.0 turns the -0.0 of a symmetric structure into 0.0.
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"
