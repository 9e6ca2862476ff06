"""``forcegate elasticity``: the stiffness tensor."""

from __future__ import annotations

from typing import Annotated

import typer

from forcegate.cli.calculation import Dispersion, File, Head, Model, Output, finish, live, read, served
from forcegate.cli.terminal import Grpc, Json


def elasticity(
    file: File,
    model: Model,
    strain: Annotated[float, typer.Option(help="Largest strain of one component.")] = 0.01,
    relax_ions: Annotated[bool, typer.Option(help="Relax the atoms under each strain.")] = True,
    relax_cell: Annotated[bool, typer.Option(help="Relax the structure before.")] = True,
    head: Head = "",
    dispersion: Dispersion = "none",
    output: Output = None,
    grpc: Grpc = "",
    as_json: Json = False,
) -> None:
    """Compute the elastic stiffness from stresses under small strains, which share the model's batches."""
    from forcegate.calculations.elasticity import ElasticityParameters
    from forcegate.calculations.elasticity import elasticity as calculate

    parameters = ElasticityParameters(strain=strain, relax_ions=relax_ions, relax_cell=relax_cell)
    source = served(model, head, grpc, dispersion)
    with live() as progress:
        answer = calculate(source, read(file), parameters, progress)
    rows = [
        (f"C{row + 1}{column + 1}", f"{answer.stiffness[row, column]:.2f}", "GPa")
        for row in range(6)
        for column in range(row, 6)
        if row == column or abs(answer.stiffness[row, column]) > 0.01 * abs(answer.stiffness).max()
    ]
    rows += [
        ("bulk modulus (Hill)", f"{answer.bulk_modulus_vrh:.2f}", "GPa"),
        ("shear modulus (Hill)", f"{answer.shear_modulus_vrh:.2f}", "GPa"),
        ("Young's modulus", f"{answer.youngs_modulus:.2f}", "GPa"),
        ("Poisson's ratio", f"{answer.poisson_ratio:.3f}", ""),
        ("universal anisotropy", f"{answer.universal_anisotropy:.3f}", ""),
        ("mechanically stable (Born)", "yes" if answer.is_stable else "no", ""),
    ]
    finish(answer, source, file, output, "elasticity", rows, as_json)
