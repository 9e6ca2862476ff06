"""``forcegate evaluate``: energy, forces and stress of the structures in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import FAILED, GPA, Grpc, Json, Models, console, messages, report
from forcegate.errors import ForcegateError, InvalidStructure

if TYPE_CHECKING:
    from ase import Atoms

    from forcegate.evaluation import Evaluation

SHOWN = 50
"""Rows of the table; the JSON and the extxyz file hold all."""

PROVENANCE = ("model", "head", "functional", "dispersion", "dtype", "checkpoint_sha256")
"""What each structure of the extxyz file says of its origin."""


@dataclass(frozen=True)
class Row:
    """One line of the table. Energy in eV, the largest force in eV/A, pressure in GPa."""

    file: str
    image: int
    model: str
    formula: str
    energy: float
    energy_per_atom: float
    max_force: float
    pressure_GPa: float | None


def evaluate(
    files: Annotated[list[Path], typer.Argument(help="Structure files of any format that ASE reads.", show_default=False)],
    model: Models,
    head: Annotated[str, typer.Option(help="Head, modal or task of the model.", show_default="the model's own")] = "",
    dispersion: Annotated[
        str, typer.Option(help="none, d3bj to add D3(BJ), or auto to add it where the model's policy recommends it.")
    ] = "none",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write structures and results to this extxyz file.")] = None,
    as_json: Json = False,
    index: Annotated[str, typer.Option(help="Which images of each file, as ASE writes it: 0, -1, :, ::10.")] = ":",
    grpc: Grpc = "",
    timeout: Annotated[float, typer.Option(help="Seconds for one structure, waiting and retries included.")] = 300.0,
) -> None:
    """Evaluate structures, many at once, over gRPC. Energies in eV, forces in eV/A, stress in eV/A^3, pressure in GPa.

    --json prints one object per structure and line. A structure that fails is listed, the others go on, and the exit code is 1.
    """
    from forcegate.evaluation import iterate

    sources = Sources(files, index)
    rows: list[Row] = []
    total = failed = 0
    with ExitStack() as stack:
        write = stack.enter_context(_writer(output)) if output is not None else None
        advance = stack.enter_context(_progress())
        for name in model:
            options: dict[str, Any] = {"head": head or None, "dispersion": dispersion, "address": grpc or None, "timeout": timeout}
            for result in iterate(sources.read(), name, connect_timeout=2.0, **options):
                file, image = sources.places.pop(result.index)
                total += 1
                failed += result.error is not None
                if as_json:
                    typer.echo(json.dumps(_as_json(file, image, name, result)))
                elif result.error is not None:
                    report(result.error, f"{file} image {image} ({result.atoms.get_chemical_formula()}), {name}")
                elif len(rows) < SHOWN:
                    rows.append(_row(file, image, name, result))
                if write is not None and result.error is None:
                    write(result)
                advance(sources.count and sources.count * len(model))
    for unreadable in sources.unreadable.values():
        report(unreadable)
    if not as_json:
        _print(rows, total - failed)
    if failed or sources.unreadable:
        messages().print(f"{failed} of {total} evaluations and {len(sources.unreadable)} of {len(files)} files failed.")
        raise typer.Exit(FAILED)


class Sources:
    """The structures in the files, read as they are needed; a file that does not parse is noted and the next one is read."""

    def __init__(self, files: list[Path], index: str) -> None:
        self.files, self.index = files, index
        self.places: dict[int, tuple[str, int]] = {}
        self.unreadable: dict[Path, ForcegateError] = {}
        self.count: int | None = None

    def read(self) -> Iterator[Atoms]:
        from ase.io import iread

        number = 0
        for file in self.files:
            try:
                for image, atoms in enumerate(iread(str(file), index=self.index)):
                    self.places[number] = (str(file), image)
                    yield atoms
                    number += 1
            except Exception as error:  # ASE's readers raise anything from IndexError to AssertionError on malformed text
                self.unreadable[file] = InvalidStructure(
                    f"{file} cannot be read: {type(error).__name__}: {str(error)[:200]}",
                    "It has to be a structure file that ASE reads, such as CIF, POSCAR, extxyz or a trajectory.",
                )
        self.count = number


def _row(file: str, image: int, model: str, result: Evaluation) -> Row:
    import numpy as np

    assert result.energy is not None
    assert result.forces is not None
    return Row(
        file=file,
        image=image,
        model=model,
        formula=result.atoms.get_chemical_formula(),
        energy=result.energy,
        energy_per_atom=result.energy / len(result.atoms),
        max_force=float(np.linalg.norm(result.forces, axis=1).max()),
        pressure_GPa=None if result.stress is None else float(-result.stress[:3].mean() * GPA),
    )


def _as_json(file: str, image: int, model: str, result: Evaluation) -> Mapping[str, Any]:
    place: dict[str, Any] = {"file": file, "image": image, "model": model, "formula": result.atoms.get_chemical_formula()}
    if result.error is not None:
        return place | {"error": result.error.as_dict() | {"request_id": result.error.request_id}}
    arrays = {"forces": result.forces, "stress": result.stress, **result.extra}
    return (
        place
        | asdict(_row(file, image, model, result))
        | {name: None if array is None else array.tolist() for name, array in arrays.items()}
        | {"provenance": dict(result.provenance)}
    )


def _print(rows: list[Row], total: int) -> None:
    table = Table()
    for column in ("file", "image", "model", "formula", "energy\neV", "energy/atom\neV", "max force\neV/A", "pressure\nGPa"):
        table.add_column(column, justify="left" if column in ("file", "model", "formula") else "right", overflow="fold")
    for row in rows:
        pressure = "-" if row.pressure_GPa is None else f"{row.pressure_GPa:.3f}"
        numbers = (f"{row.energy:.6f}", f"{row.energy_per_atom:.6f}", f"{row.max_force:.4f}", pressure)
        table.add_row(escape(row.file), str(row.image), row.model, row.formula, *numbers)
    if rows:
        console().print(table)
    if total > len(rows):
        console().print(f"... and {total - len(rows)} more; --json or -o has all of them.")


@contextmanager
def _writer(path: Path) -> Iterator[Callable[[Evaluation], None]]:
    """Appends results to an extxyz file, structure by structure."""
    from ase.io.extxyz import write_extxyz

    if path.suffix not in (".extxyz", ".xyz"):
        raise typer.BadParameter("the file has to end in .extxyz or .xyz, the format that is written.", param_hint="--output")
    with path.open("w") as file:

        def write(result: Evaluation) -> None:
            atoms = result.to_atoms()
            atoms.info |= {name: result.provenance[name] for name in PROVENANCE if result.provenance[name]}
            write_extxyz(file, [atoms])

        yield write


@contextmanager
def _progress() -> Iterator[Callable[[int | None], None]]:
    """A bar on stderr; files are read as they are needed, so the total is None until the last one has been read."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True) as progress:
        task = progress.add_task("structures", total=None)
        yield lambda total: progress.update(task, advance=1, total=total)
