"""``forcegate export``: fetch, verify and try out models, and take in users' own checkpoints.

Like ``serve`` it reaches into exporters and frontend, and only when the command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import FAILED, console, messages, report, wide
from forcegate.errors import InvalidRequest

if TYPE_CHECKING:
    from exporters.download import Progress
    from exporters.export import Outcome
    from exporters.own import OwnCheckpoint
    from forcefields.catalogue import Variant
    from frontend.settings import Settings

if find_spec("exporters") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")


def export(
    models: Annotated[list[str] | None, typer.Argument(help="Names or aliases of models.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every model of the catalogue.")] = False,
    family: Annotated[str, typer.Option(help="Every model of this family; with --file, the family of the checkpoint.")] = "",
    file: Annotated[Path | None, typer.Option(help="A checkpoint of your own, fine-tuned for instance.")] = None,
    name: Annotated[str, typer.Option("--as", help="The name to serve your own checkpoint under.")] = "",
    like: Annotated[str, typer.Option(help="The model that it was tuned from: what you do not say is taken from that one.")] = "",
    functional: Annotated[str, typer.Option(help="The functional that it was trained on.")] = "",
    training_data: Annotated[str, typer.Option(help="The data that it was trained on.")] = "",
    licence: Annotated[str, typer.Option(help="The licence of its weights.")] = "",
    head: Annotated[list[str] | None, typer.Option(help="A head that it has; repeat it, the default first.")] = None,
    from_dir: Annotated[Path | None, typer.Option(help="Take checkpoints from this folder instead of fetching them.")] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Accept non-commercial and gated licences.")] = False,
    remove: Annotated[str, typer.Option(metavar="NAME", help="Remove a checkpoint of your own.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Your checkpoint takes the place of another of that name.")] = False,
    rollback: Annotated[
        str, typer.Option(metavar="NAME", help="Put the checkpoint of your own back that --replace has replaced.")
    ] = "",
    state: Annotated[Path | None, typer.Option(help="Folder of the service's state.")] = None,
) -> None:
    """Make models ready to be served: environment, checkpoint, licence, configuration, gate, golden energies.

    What is done already is skipped, so an export that was interrupted goes on. A gated checkpoint needs a token in HF_TOKEN.
    Loading a checkpoint may run code that is in it: export files of your own only when you trust them.
    """
    from forcegate.cli.environments import settings_of

    settings = settings_of(state)
    if remove:
        from exporters import own

        own.remove(remove, settings.state)
        console().print(f"{remove} is removed; a service that has it loaded serves it until the model is unloaded.", soft_wrap=True)
        return
    if rollback:
        _roll_back(rollback, settings)
        return
    mine = _own_checkpoint(file, name, family, like, functional, training_data, licence, head)
    if from_dir is not None and not from_dir.is_dir():
        raise InvalidRequest(f"There is no folder {from_dir}.", "")
    names = [] if mine else _names(models or [], everything, family)
    with _progress() as progress:
        exporter = _exporter(settings, accept_licence, from_dir, progress)
        outcomes = [exporter.export_own(mine, replace)] if mine else exporter.export(names)
    if replace and outcomes[0].error is None:
        _tell_service(settings)
    _show(outcomes)


def _roll_back(name: str, settings: Settings) -> None:
    from exporters import versions

    digest = versions.put_back(name, settings.state)
    console().print(f"{name} is the checkpoint {digest[:12]} again; the same command undoes it.", soft_wrap=True)
    _tell_service(settings)


def _tell_service(settings: Settings) -> None:
    """Has the service on this state folder read the catalogue anew, where it runs on this machine."""
    from frontend.supervisor import launch

    if launch.renew(settings):
        messages().print("[dim]The running service loads it now; its gateways start anew, one by one.[/]", soft_wrap=True)


def _own_checkpoint(
    file: Path | None,
    name: str,
    family: str,
    like: str,
    functional: str,
    training_data: str,
    licence: str,
    heads: list[str] | None,
) -> OwnCheckpoint | None:
    if file is None:
        given = {"--as": name, "--like": like, "--functional": functional, "--training-data": training_data, "--licence": licence}
        if wrong := [option for option, value in ({**given, "--head": heads}).items() if value]:
            raise InvalidRequest(f"{', '.join(wrong)} is said of a checkpoint of your own.", "Name its file with --file.")
        return None
    if not name:
        raise InvalidRequest("Your checkpoint needs a name to be served under.", "Give one with --as.")
    from exporters.own import OwnCheckpoint

    return OwnCheckpoint(file, name, family, like, functional, training_data, licence, tuple(heads or ()))


def _names(models: list[str], everything: bool, family: str) -> list[str]:
    if bool(models) + everything + bool(family) != 1 and not (everything and family and not models):
        raise InvalidRequest(
            "Say what to export.", "Name models, or give --all, or --family, or --file with a checkpoint of your own."
        )
    from exporters.export import selection
    from forcefields import catalogue

    return models or selection(catalogue.load(), family)


def _exporter(settings: Settings, accept: bool, brought: Path | None, progress: Progress) -> Any:
    from exporters.export import Exporter

    return Exporter(
        root=settings.root,
        state=settings.state,
        threads=settings.threads,
        device=settings.device,
        ask=lambda variant: _ask(variant, accept),
        say=lambda line: messages().print(f"[dim]{escape(line)}[/]", soft_wrap=True),
        progress=progress,
        brought=brought,
    )


def _ask(variant: Variant, accept: bool) -> str:
    if accept:
        return "--accept-licence"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return ""
    from exporters.consent import terms

    messages().print(f"[bold]{variant.name}[/]: {escape(terms(variant))}", soft_wrap=True)
    return "on the terminal" if typer.confirm("Do you accept this licence?", default=False, err=True) else ""


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each file that is being fetched; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda _name, _done, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bars: dict[str, Any] = {}
    with Progress(*columns, console=messages(), transient=True) as display:

        def advance(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = display.add_task(name, total=total or None)
            display.update(bars[name], completed=done, total=total or None)

        yield advance


def _show(outcomes: list[Outcome]) -> None:
    table = Table()
    for column in ("model", "state", "checkpoint", "size", "gate", "nearest to its tolerance", "seconds"):
        table.add_column(column, justify="right" if column in ("size", "seconds") else "left", overflow="fold")
    for outcome in outcomes:
        checks = outcome.checks
        measured = [check for check in checks if check["deviation"] is not None]
        worst = max(measured, key=lambda check: check["deviation"] / check["tolerance"], default=None)
        table.add_row(
            outcome.name,
            f"[red]{outcome.status}[/]" if outcome.error is not None else f"[green]{outcome.status}[/]",
            outcome.sha256[:12],
            f"{outcome.size / 1e6:.2f} MB" if outcome.size else "",
            f"{len(measured)} passed" + (f", {len(checks) - len(measured)} declared" if len(checks) > len(measured) else "")
            if checks
            else "",
            f"{worst['name']}: {worst['deviation']:.1e} of {worst['tolerance']:.0e} {worst['unit']}" if worst else "",
            f"{outcome.seconds:.1f}",
        )
    out = wide()
    out.print(table)
    for outcome in outcomes:
        if outcome.error is not None:
            report(outcome.error, "" if outcome.name in outcome.error.detail else outcome.name)
    if good := [outcome.name for outcome in outcomes if outcome.error is None]:
        out.print(f"Serve with: forcegate serve -m {','.join(good)}", soft_wrap=True)
    if any(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(FAILED)
