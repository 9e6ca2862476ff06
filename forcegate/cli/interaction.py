"""``forcegate interaction``: a guest in a host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forcegate.cli.calculation import Dispersion, File, Head, Model, Output, finish, live, read, served
from forcegate.cli.terminal import Grpc, Json


def interaction(
    file: File,
    model: Model,
    guest: Annotated[str, typer.Option(help="H2, CO2, CH4, N2, H2O, CO, NH3, or a structure file.")] = "CO2",
    placement: Annotated[str, typer.Option(help="grid, random, or given (where the guest's file has it).")] = "grid",
    spacing: Annotated[float, typer.Option(help="A, of the grid.")] = 1.5,
    count: Annotated[int, typer.Option(help="Random places.")] = 50,
    orientations: Annotated[int, typer.Option(help="Of the guest at each place.")] = 3,
    relax: Annotated[bool, typer.Option(help="Relax the guest from the best placements.")] = False,
    relax_host: Annotated[bool, typer.Option(help="Relax the host's atoms as well.")] = False,
    head: Head = "",
    dispersion: Dispersion = "none",
    output: Output = None,
    grpc: Grpc = "",
    as_json: Json = False,
) -> None:
    """Compute the interaction energy of a guest with a host; all placements share the model's batches."""
    from forcegate.calculations.interaction_energy import InteractionEnergyParameters, interaction_energy
    from forcegate.calculations.placements import GUESTS

    parameters = InteractionEnergyParameters(
        guest=guest if guest in GUESTS or not Path(guest).exists() else read(Path(guest)),
        placement=placement,
        spacing=spacing,
        count=count,
        orientations=orientations,
        relax=relax,
        relax_host=relax_host,
    )
    source = served(model, head, grpc, dispersion)
    with live() as progress:
        answer = interaction_energy(source, read(file), parameters, progress)
    rows = [
        ("interaction energy", f"{answer.interaction_energy:.4f}", "eV"),
        ("", f"{answer.interaction_energy_kJ_per_mol:.2f}", "kJ/mol"),
        ("host with guest", f"{answer.energy_total:.4f}", "eV"),
        ("host", f"{answer.energy_host:.4f}", "eV"),
        (f"guest {answer.guest}", f"{answer.energy_guest:.4f}", "eV"),
        ("best site", " ".join(f"{x:.3f}" for x in answer.best_site), "A"),
        ("nearest atoms", f"{answer.best_distance:.3f}", "A"),
        ("placements evaluated", f"{len(answer.sites)} of {answer.placements}", ""),
    ]
    finish(answer, source, file, output, "interaction", rows, as_json)
