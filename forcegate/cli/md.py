"""``forcegate md``: does a structure hold together?"""

from __future__ import annotations

from typing import Annotated

import typer

from forcegate.cli.calculation import Dispersion, File, Head, Model, Output, finish, live, read, served, with_error
from forcegate.cli.terminal import FAILED, Grpc, Json


def md(
    file: File,
    model: Model,
    temperature: Annotated[float, typer.Option("--temperature", "-T", help="K.")] = 300.0,
    pressure: Annotated[
        float | None, typer.Option("--pressure", "-P", help="bar; with one the volume may change (NPT).", show_default="NVT")
    ] = None,
    ensemble: Annotated[str, typer.Option(help="nvt, npt or nve.", show_default="npt with a pressure, else nvt")] = "",
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    equilibration: Annotated[int, typer.Option(help="Steps of equilibration.")] = 1000,
    steps: Annotated[int, typer.Option(help="Steps of production.")] = 5000,
    flexible_cell: Annotated[bool, typer.Option("--flexible-cell", help="NPT with the shape of the cell as a variable.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.", show_default="drawn")] = None,
    head: Head = "",
    dispersion: Dispersion = "none",
    output: Output = None,
    grpc: Grpc = "",
    as_json: Json = False,
) -> None:
    """Run molecular dynamics and judge whether the structure is stable. The exit code is 1 where it is not."""
    from forcegate.calculations.stability import StabilityParameters, stability

    parameters = StabilityParameters(
        temperature=temperature,
        pressure=pressure,
        ensemble=ensemble or None,
        timestep=timestep,
        equilibration_steps=equilibration,
        production_steps=steps,
        flexible_cell=flexible_cell,
        seed=seed,
    )
    source = served(model, head, grpc, dispersion)
    with live() as progress:
        answer = stability(source, read(file), parameters, progress)
    rows = [
        ("temperature", with_error(answer.mean_temperature, answer.temperature_error, 1), "K"),
        ("potential energy", f"{answer.mean_energy:.4f}", "eV"),
        ("rmsd", f"{answer.rmsd:.3f}", "A"),
        ("largest displacement", f"{answer.max_displacement:.3f}", "A"),
        (f"drift of the {answer.drift_of}", with_error(answer.energy_drift, answer.energy_drift_error, 3), "meV/atom/ps"),
    ]
    if answer.mean_pressure is not None and answer.volume_change_percent is not None:
        rows += [
            ("pressure", with_error(answer.mean_pressure, answer.pressure_error, 0), "bar"),
            ("change of volume", f"{answer.volume_change_percent:.2f}", "%"),
        ]
    for criterion in answer.criteria:
        measured = "" if criterion.value is None else f" {criterion.value:.3g}, limit {criterion.limit:g}"
        rows.append((f"criterion {criterion.name}", ("holds" if criterion.passed else "fails") + measured, criterion.unit))
    rows.append(("stable", "yes" if answer.is_stable else f"no. {answer.blow_up or ''}".strip(), ""))
    finish(answer, source, file, output, "md", rows, as_json)
    if not answer.is_stable:
        raise typer.Exit(FAILED)
