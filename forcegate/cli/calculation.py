"""What the commands for one calculation share: reading the structure, live progress, the files beside it, the table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import console, messages
from forcegate.errors import InvalidStructure

if TYPE_CHECKING:
    from ase import Atoms

    from forcegate.calculations.forces import Served
    from forcegate.calculations.progress import Progress, Step

File = Annotated[Path, typer.Argument(help="A structure file; the last structure of several.", show_default=False)]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of the model.", show_default=False)]
Head = Annotated[str, typer.Option(help="Head, modal or task of the model.", show_default="the model's own")]
Dispersion = Annotated[str, typer.Option(help="none, d3bj or auto.")]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", help="The JSON file; the picture is saved beside it.", show_default="beside FILE"),
]


def read(file: Path) -> Atoms:
    """The last structure in ``file``.

    Raises:
        InvalidStructure: it cannot be read.
    """
    from ase.io import read as read_atoms

    try:
        atoms = read_atoms(str(file), index=-1)
    except Exception as error:  # ASE's readers raise anything from IndexError to AssertionError on malformed text
        raise InvalidStructure(
            f"{file} cannot be read: {type(error).__name__}: {str(error)[:200]}",
            "It has to be a structure file that ASE reads, such as CIF, POSCAR, extxyz or a trajectory.",
        ) from None
    assert not isinstance(atoms, list)
    atoms.calc = None
    return atoms


def served(model: str, head: str, grpc: str, dispersion: str) -> Served:
    """The model as a source of forces."""
    from forcegate.calculations.forces import Served

    return Served(model, grpc or None, head=head or None, dispersion=dispersion)


@contextmanager
def live() -> Iterator[Progress]:
    """A line on stderr that says where the calculation is."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[numbers]}"), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True) as display:
        task = display.add_task("starting", total=None, numbers="")

        def show(step: Step) -> None:
            display.update(task, description=step.phase, total=step.steps, completed=step.step, numbers=_numbers(step))

        yield show


def _numbers(step: Step) -> str:
    known = (
        ("structure", step.part, "d", ""),
        ("step", step.step, "d", ""),
        ("E", step.energy, ".4f", " eV"),
        ("fmax", step.fmax, ".4f", " eV/A"),
        ("T", step.temperature, ".0f", " K"),
        ("V", step.volume, ".1f", " A^3"),
        ("P", step.pressure, ".3f", " GPa"),
    )
    return "  ".join(f"{name} {value:{form}}{unit}" for name, value, form, unit in known if value is not None)


def finish(
    answer: Any, source: Served, file: Path, output: Path | None, name: str, rows: Sequence[tuple[str, str, str]], as_json: bool
) -> None:
    """Saves JSON and picture, and prints the table (quantity, value, unit) or the JSON."""
    from forcegate.calculations.plots import save_plot

    target = output or file.with_name(f"{file.stem}-{name}.json")
    picture = target.with_suffix(".png")
    body = answer.as_dict() | {"model": source.model, "provenance": source.provenance()}
    target.write_text(json.dumps(body, indent=2) + "\n")
    save_plot(answer, picture)
    if as_json:
        typer.echo(json.dumps(body))
    else:
        table = Table(title=f"{file.name}, {source.model}", title_justify="left")
        for column in ("quantity", "value", "unit"):
            table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
        for quantity, value, unit in rows:
            table.add_row(escape(quantity), escape(value), escape(unit))
        console().print(table)
    messages().print(f"Saved {escape(str(target))} and {escape(str(picture))}.", soft_wrap=True)


def with_error(value: float, error: float | None, digits: int) -> str:
    """A number with its uncertainty, where that is known."""
    import math

    known = error is not None and math.isfinite(error)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")
