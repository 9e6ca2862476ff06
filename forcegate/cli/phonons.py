"""``forcegate phonons``: bands, density of states, heat capacity."""

from __future__ import annotations

from typing import Annotated

import typer

from forcegate.cli.calculation import Dispersion, File, Head, Model, Output, finish, live, read, served
from forcegate.cli.terminal import Grpc, Json, messages
from forcegate.errors import InvalidRequest

DEFAULT_TEMPERATURES = [100.0, 200.0, 300.0, 400.0, 500.0]


def phonons(
    file: File,
    model: Model,
    temperature: Annotated[list[float], typer.Option("--temperature", "-T", help="K; repeat it.")] = DEFAULT_TEMPERATURES,
    supercell: Annotated[str, typer.Option(help="Such as 2,2,2.", show_default="from the length")] = "",
    supercell_length: Annotated[float, typer.Option(help="A between opposite faces of the supercell.")] = 12.0,
    displacement: Annotated[float, typer.Option(help="A.")] = 0.01,
    relax: Annotated[bool, typer.Option(help="Relax the structure before.")] = True,
    head: Head = "",
    dispersion: Dispersion = "none",
    output: Output = None,
    grpc: Grpc = "",
    as_json: Json = False,
) -> None:
    """Compute phonons and the harmonic heat capacity; all displaced supercells share the model's batches."""
    from forcegate.calculations.heat_capacity import HeatCapacityParameters, heat_capacity

    parameters = HeatCapacityParameters(
        temperatures=tuple(temperature),
        supercell=_multiples(supercell),
        supercell_length=supercell_length,
        displacement=displacement,
        relax=relax,
    )
    source = served(model, head, grpc, dispersion)
    with live() as progress:
        answer = heat_capacity(source, read(file), parameters, progress)
    rows = [
        ("supercell", " x ".join(str(multiple) for multiple in answer.supercell), ""),
        ("displaced supercells", str(answer.displacements), ""),
        ("lowest frequency", f"{answer.lowest_frequency + 0.0:.3f}", "THz, imaginary below 0"),
        ("highest frequency", f"{answer.max_frequency:.3f}", "THz"),
        ("zero-point energy", f"{answer.zero_point_energy:.4f}", "eV per cell"),
    ]
    for index, kelvin in enumerate(answer.temperatures):
        rows.append((f"Cv at {kelvin:g} K", f"{answer.heat_capacities[index]:.3f}", "J/mol/K per cell"))
        rows.append((f"free energy at {kelvin:g} K", f"{answer.free_energies[index]:.4f}", "eV per cell"))
        rows.append((f"entropy at {kelvin:g} K", f"{answer.entropies[index]:.3f}", "J/mol/K per cell"))
    finish(answer, source, file, output, "phonons", rows, as_json)
    for warning in answer.warnings:
        messages().print(f"[bold yellow]Warning:[/] {warning}", soft_wrap=True)


def _multiples(text: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    try:
        a, b, c = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        raise InvalidRequest(f"--supercell {text!r} is not three whole numbers.", "Write it as 2,2,2.") from None
    return a, b, c
