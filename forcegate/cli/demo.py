"""``forcegate demo``: three real structures to two models, side by side; the service is started if it is not up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from forcegate.cli.compare import show
from forcegate.cli.terminal import FAILED, Url, console
from forcegate.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from ase import Atoms

DEFAULT_MODELS = ["sevennet-0", "chgnet-0.3.0"]
SHOWN_ATOMS = 6


def demo(
    url: Url = "",
    model: Annotated[list[str], typer.Option("--model", "-m", help="Name of a model; repeat it for several.")] = DEFAULT_MODELS,
) -> None:
    """Send rock salt, a perovskite and rattled copper to both default models over REST, and print the answers side by side."""
    from forcegate.client import Client

    try:
        from forcegate.cli.serve import running_service
    except ImportError:
        raise SetupError("The demo starts the service, which is not installed here.", "pip install 'forcegate[serve]'.") from None

    failed = False
    with running_service(url or None) as address, Client(address) as client:
        for title, atoms in structures().items():
            answer = client.multi_model(atoms, model)
            console().print()
            show(answer, title)
            _print_forces(atoms, answer["results"])
            failed |= any(outcome["status"] != "success" for outcome in answer["results"])
    if failed:
        raise typer.Exit(FAILED)


def structures() -> dict[str, Atoms]:
    """Three crystals with their measured lattice constants at room temperature, in A."""
    from ase.build import bulk
    from ase.spacegroup import crystal

    salt = bulk("NaCl", "rocksalt", a=5.640, cubic=True)
    perovskite = crystal(
        ["Sr", "Ti", "O"], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221, cellpar=[3.905] * 3 + [90] * 3
    )
    # Off its centre of symmetry, so that there are forces to look at.
    perovskite.positions[1, 2] += 0.1
    copper = bulk("Cu", "fcc", a=3.615, cubic=True)
    copper.rattle(stdev=0.05, seed=0)
    return {
        "Rock salt NaCl, a = 5.640 A": salt,
        "Perovskite SrTiO3, a = 3.905 A, Ti moved by 0.1 A along z": perovskite,
        "Copper, a = 3.615 A, rattled by 0.05 A": copper,
    }


def _print_forces(atoms: Atoms, outcomes: Sequence[Mapping[str, Any]]) -> None:
    good = [outcome for outcome in outcomes if outcome["status"] == "success"]
    if not good:
        return
    table = Table(title="Forces (x y z) in eV/A", title_justify="left")
    table.add_column("atom", justify="right")
    for outcome in good:
        table.add_column(outcome["model"], justify="right")
    for number, symbol in enumerate(atoms.symbols[:SHOWN_ATOMS]):
        vectors = [outcome["result"]["forces"][number] for outcome in good]
        table.add_row(f"{number} {symbol}", *(" ".join(f"{round(x, 4) + 0.0:8.4f}" for x in vector) for vector in vectors))
    console().print(table)
    if len(atoms) > SHOWN_ATOMS:
        console().print(f"... and {len(atoms) - SHOWN_ATOMS} more atoms.")
