"""``forcegate env``: the execution environments of the families, built, checked and listed."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import FAILED, messages, report, wide
from forcegate.errors import ForcegateError, InvalidRequest

if TYPE_CHECKING:
    from exporters.environments import Environment
    from forcefields.catalogue import Family
    from frontend.settings import Settings

if find_spec("exporters") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")

env = typer.Typer(help="The execution environments of the families.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(help="Families; all of them when none is named.", show_default=False)]


def settings_of(state: Path | None = None) -> Settings:
    """The settings, with the catalogue's variables set from them: it is read in many processes, by the same variables in each."""
    from forcefields import catalogue
    from frontend import settings as all_settings

    settings = all_settings.load(state=state)
    os.environ[catalogue.EXTRA_FAMILIES] = settings.families
    os.environ[catalogue.STATE] = str(settings.state.resolve())
    return settings


@env.command()
def build(
    families: Names = None,
    everything: Annotated[bool, typer.Option("--all", help="The environments of all families, and Triton's.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Build also what is complete.")] = False,
) -> None:
    """Build the environments of families, from their pinned requirements; those that are complete are left alone."""
    from exporters import environments

    if bool(families) == everything:
        raise InvalidRequest("Say which environments to build.", "Name families, or give --all.")
    root = settings_of().root
    failed = False
    for environment in _chosen(families, root):
        try:
            if not environments.ensure(environment, root, _say, again):
                _say(f"environment {environment.name}: complete")
        except ForcegateError as error:
            failed = True
            report(error, environment.name)
    if failed:
        raise typer.Exit(FAILED)


@env.command()
def check(families: Names = None) -> None:
    """Check that environments are what their pins say, hold their libpython, and can import the adapters of their families."""
    root = settings_of().root
    table = Table()
    for column in ("environment", "family", "package", "result"):
        table.add_column(column)
    failures: list[tuple[str, ForcegateError]] = []
    for environment, users in _chosen(families, root).items():
        for family in users or (None,):
            package = f"{family.package} {family.version}" if family else "nvidia-pytriton"
            name = family.name if family else "-"
            try:
                table.add_row(environment.name, name, package, f"[green]{_checked(environment, family, root)}[/]")
            except ForcegateError as error:
                failures.append((environment.name, error))
                table.add_row(environment.name, name, package, f"[red]{error.code}[/]")
    wide().print(table)
    for name, failure in failures:
        report(failure, name)
    if failures:
        raise typer.Exit(FAILED)


def _checked(environment: Environment, family: Family | None, root: Path) -> str:
    """What was found in order; Triton's environment has no family."""
    from exporters import environments, family_python

    environments.check(environment, root)
    if family is None:
        return "complete"
    found = family_python.ask(root / "environments", environment.name, "check", family.name)
    return f"{found['adapter']} imported"


@env.command("list")
def list_(families: Names = None) -> None:
    """List environments: package and version, state, size on disk, and how long they took to build."""
    from exporters import environments

    root = settings_of().root
    table = Table()
    for column in ("environment", "package", "state", "size", "built in"):
        table.add_column(column, justify="right" if column in ("size", "built in") else "left")
    for environment, users in _chosen(families, root).items():
        folder = root / "environments" / environment.name
        stamp = environments.stamp(environment, root)
        complete = environments.complete(environment, root)
        table.add_row(
            environment.name,
            ", ".join(dict.fromkeys(f"{family.package} {family.version}" for family in users)) or "nvidia-pytriton",
            "[green]complete[/]" if complete else "[yellow]out of date[/]" if stamp else "not built",
            f"{environments.size(folder) / 1e9:.2f} GB" if stamp else "",
            f"{stamp['seconds']:.0f} s" if "seconds" in stamp else "",
        )
    wide().print(table)


def _chosen(names: list[str] | None, root: Path) -> dict[Environment, list[Family]]:
    """The environments of the named families, each with the families that it serves; Triton's among them when none is named."""
    from exporters import environments
    from forcefields import catalogue

    families = catalogue.load().families
    own = environments.of_triton(root)
    if unknown := [name for name in names or () if name not in {*families, own.name}]:
        raise InvalidRequest(f"There is no family {unknown[0]!r}.", f"There are {', '.join(sorted(families))}, and {own.name}.")
    requirements = {family.name: family.requirements for family in families.values()}
    chosen: dict[Environment, list[Family]] = {own: []} if not names or own.name in names else {}
    for family in families.values():
        environment = environments.of_family(family, requirements)
        if not names or family.name in names:
            chosen.setdefault(environment, []).append(family)
    return chosen


def _say(line: str) -> None:
    messages().print(f"[dim]{escape(line)}[/]", soft_wrap=True)
