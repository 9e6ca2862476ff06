"""``forcegate bulk-modulus``: an equation of state."""

from __future__ import annotations

from typing import Annotated

import typer

from forcegate.cli.calculation import Dispersion, File, Head, Model, Output, finish, live, read, served, with_error
from forcegate.cli.terminal import Grpc, Json


def bulk_modulus(
    file: File,
    model: Model,
    strain_range: Annotated[float, typer.Option(help="Volumetric: 0.06 is 94 to 106 % of the volume.")] = 0.06,
    points: Annotated[int, typer.Option(help="Volumes.")] = 7,
    relax_ions: Annotated[bool, typer.Option(help="Relax the atoms at each volume.")] = True,
    relax_cell: Annotated[bool, typer.Option(help="Relax the structure before.")] = True,
    eos: Annotated[str, typer.Option(help="birch_murnaghan, vinet, murnaghan or poirier_tarantola.")] = "birch_murnaghan",
    head: Head = "",
    dispersion: Dispersion = "none",
    output: Output = None,
    grpc: Grpc = "",
    as_json: Json = False,
) -> None:
    """Compute the bulk modulus from energies at several volumes, which share the model's batches."""
    from forcegate.calculations.bulk_modulus import BulkModulusParameters
    from forcegate.calculations.bulk_modulus import bulk_modulus as calculate

    parameters = BulkModulusParameters(
        strain_range=strain_range, num_points=points, relax_ions=relax_ions, relax_cell=relax_cell, eos=eos
    )
    source = served(model, head, grpc, dispersion)
    with live() as progress:
        answer = calculate(source, read(file), parameters, progress)
    rows = [
        ("bulk modulus", with_error(answer.bulk_modulus, answer.bulk_modulus_error, 2), "GPa"),
        ("its derivative", with_error(answer.bulk_modulus_derivative, answer.bulk_modulus_derivative_error, 2), ""),
        ("volume", with_error(answer.equilibrium_volume, answer.equilibrium_volume_error, 3), "A^3"),
        ("energy", f"{answer.equilibrium_energy:.6f}", "eV"),
        ("r2 of the fit", f"{answer.fitting_r2:.7f}", ""),
    ]
    finish(answer, source, file, output, "bulk-modulus", rows, as_json)
