"""``forcegate relax``: the structures in files to their minima, many at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.calculation import Head, Model
from forcegate.cli.evaluate import SHOWN, Sources
from forcegate.cli.terminal import FAILED, messages, report, wide
from forcegate.errors import InvalidRequest

if TYPE_CHECKING:
    from forcegate.relaxation import Relaxation, Relaxed, Store

Address = Annotated[
    str,
    typer.Option(
        "--grpc", "--address", envvar="FORCEGATE_GRPC", help="Address of Triton's gRPC, host:port.", show_default="127.0.0.1:8001"
    ),
]

REFRESHED = 0.2
"""Seconds between two looks of the bar."""

COLUMNS = ("file", "image", "formula", "outcome", "steps", "energy change\neV", "fmax\neV/A", "volume change\n%", "pressure\nGPa")
WORDS = ("file", "formula", "outcome")


def relax(
    files: Annotated[list[Path], typer.Argument(help="Structure files of any format that ASE reads.", show_default=False)],
    model: Model,
    fmax: Annotated[
        float, typer.Option(help="Converged is what has no larger force on an atom or a row of the cell, eV/A.")
    ] = 0.05,
    max_steps: Annotated[int, typer.Option(help="Steps of one structure, at most; what needs more has not converged.")] = 500,
    optimizer: Annotated[str, typer.Option(help="fire, lbfgs or bfgs.")] = "fire",
    cell: Annotated[
        str, typer.Option(help="frechet, unit or fixed; it is fixed in any case unless periodic in all three directions.")
    ] = "frechet",
    pressure: Annotated[float, typer.Option(help="Presses the cell together, GPa; below 0 it pulls.")] = 0.0,
    head: Head = "",
    in_flight: Annotated[int, typer.Option(min=1, help="Structures under way at once, at most.")] = 64,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the relaxed structures to this extxyz file, and the state to OUTPUT.state."),
    ] = None,
    index: Annotated[str, typer.Option(help="Which images of each file, as ASE writes it: 0, -1, :, ::10.")] = ":",
    grpc: Address = "",
    timeout: Annotated[float, typer.Option(help="Seconds for one evaluation, waiting and retries included.")] = 300.0,
) -> None:
    """Relax structures, many at once, each along the path that ASE's optimizer takes. Units: eV, eV/A, GPa.

    With --output the state is written down every few seconds, and the same command goes on where one that was killed has stopped.
    A structure that fails is listed, the others go on, and the exit code is 1; one that has not converged is no failure.
    """
    from forcegate.relaxation import Store, iterate_relaxations

    if output is not None:
        _check(output, files)
    sources = Sources(files, index)
    structures = list(sources.read())
    volumes = [atoms.cell.volume for atoms in structures]
    store = None if output is None else Store(output.with_name(f"{output.name}.state"))
    results: dict[int, Relaxed] = {}
    options: dict[str, Any] = {"fmax": fmax, "max_steps": max_steps, "optimizer": optimizer, "cell": cell, "pressure": pressure}
    options |= {"head": head or None, "address": grpc or None, "timeout": timeout, "connect_timeout": 2.0}
    with _kept(store), _progress(len(structures)) as (on_step, advance):
        for result in iterate_relaxations(structures, model, in_flight=in_flight, on_step=on_step, store=store, **options):
            results[result.index] = result
            advance(result)
        ordered = [results[number] for number in sorted(results)]
        if output is not None:
            _write(output, ordered, sources)
        passing = sum(result.error is not None and result.error.retryable for result in ordered)
        if store is not None and not passing:
            store.remove()
    _tell(ordered, volumes, sources, max_steps)
    failed = sum(result.error is not None for result in ordered)
    if failed or sources.unreadable:
        messages().print(f"{failed} of {len(ordered)} relaxations and {len(sources.unreadable)} of {len(files)} files failed.")
        if store is not None and passing:
            messages().print(f"The same command tries {passing} of them again, whose errors can pass, and only those.")
        raise typer.Exit(FAILED)


def _check(output: Path, files: Sequence[Path]) -> None:
    name = "--output"
    if output.suffix not in (".extxyz", ".xyz"):
        raise typer.BadParameter("the file has to end in .extxyz or .xyz, the format that is written.", param_hint=name)
    if not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent}.", param_hint=name)
    if output.resolve() in [file.resolve() for file in files]:
        raise typer.BadParameter("it is one of the files to be read, which a run that goes on needs as they were.", param_hint=name)


@contextmanager
def _kept(store: Store | None) -> Iterator[None]:
    """Writes the state down however the block ends, and says where it is when that is before its time."""
    if store is None:
        yield
        return
    try:
        yield
    except InvalidRequest:  # nothing of this run is in the file
        store.close()
        raise
    except BaseException:
        store.close()
        if store.path.exists():
            messages().print(f"What has been done is in {escape(str(store.path))}; the same command goes on from there.")
        raise
    store.close()


def _write(path: Path, results: Sequence[Relaxed], sources: Sources) -> None:
    """Writes what did not fail; the file is there as a whole or not at all."""
    from ase.io.extxyz import write_extxyz

    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w") as file:
            for result in results:
                if result.error is None:
                    atoms = result.to_atoms()
                    atoms.info["file"], atoms.info["image"] = sources.places[result.index]
                    write_extxyz(file, [atoms])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _tell(results: Sequence[Relaxed], volumes: Sequence[float], sources: Sources, max_steps: int) -> None:
    """The table, and each error in a sentence."""
    table = Table()
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in WORDS else "right", overflow="fold")
    for result in results[:SHOWN]:
        table.add_row(*_row(result, volumes[result.index], *sources.places[result.index]))
    if results:
        wide().print(table)
    if len(results) > SHOWN:
        wide().print(f"... and {len(results) - SHOWN} more.")
    for result in results:
        if result.error is not None:
            file, image = sources.places[result.index]
            report(result.error, f"{file} image {image} ({result.atoms.get_chemical_formula()})")
    for unreadable in sources.unreadable.values():
        report(unreadable)
    if short := sum(result.error is None and not result.converged for result in results):
        messages().print(f"{short} of {len(results)} structures have not converged in {max_steps} steps.")


def _row(result: Relaxed, volume: float, file: str, image: int) -> tuple[str, ...]:
    outcome = "converged" if result.converged else "not converged"
    change = swelling = None
    if result.error is not None:
        outcome = result.error.code
    elif result.energy is not None and result.initial_energy is not None:
        change = result.energy - result.initial_energy
        swelling = 100 * (result.atoms.cell.volume / volume - 1) if result.cell_filter != "fixed" else None
    numbers = ((change, ".6f"), (result.fmax, ".4f"), (swelling, "+.3f"), (result.pressure, ".3f"))
    shown = ("-" if value is None else f"{value:{form}}" for value, form in numbers)
    return escape(file), str(image), result.atoms.get_chemical_formula(), outcome, str(result.steps), *shown


@contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[Relaxation], None], Callable[[Relaxed], None]]]:
    """A bar on stderr: what is done, evaluations a second, and the largest force among those under way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), TimeElapsedColumn())
    largest: dict[int, float] = {}
    began = shown = time.monotonic()
    steps = 0
    with Progress(TextColumn("{task.description}"), *columns, console=messages(), transient=True) as progress:
        task = progress.add_task("structures", total=total, numbers="")

        def stepped(relaxation: Relaxation) -> None:
            nonlocal steps, shown
            steps += 1
            if relaxation.fmax is not None:
                largest[relaxation.index] = relaxation.fmax
            if (now := time.monotonic()) - shown > REFRESHED:
                shown = now
                numbers = f"{steps / (now - began):.0f} steps/s  fmax {max(largest.values(), default=0.0):.3f} eV/A"
                progress.update(task, numbers=numbers)

        def advance(result: Relaxed) -> None:
            largest.pop(result.index, None)
            progress.update(task, advance=1)

        yield stepped, advance
