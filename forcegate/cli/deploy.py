"""``forcegate deploy``: the service in containers, thin over docker compose. Every command is printed before it is run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import FAILED, messages, wide
from forcegate.errors import InvalidRequest, SetupError

if TYPE_CHECKING:
    from frontend.deployment.commands import Deployment

if find_spec("frontend") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")

deploy = typer.Typer(help="The service in containers, by docker compose.", no_args_is_help=True)

Profile = Annotated[str, typer.Option("--profile", "-p", help="cpu, gpu1, gpu8 or test.")]
Monitoring = Annotated[bool, typer.Option("--monitoring", help="With Prometheus and Grafana.")]
Postgres = Annotated[bool, typer.Option("--postgres", help="With Postgres for the tasks.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Print the commands and run nothing.")]
Service = Annotated[str, typer.Argument(help="One service; all when none is named.", show_default=False)]


def _chosen(profile: str, monitoring: bool, postgres: bool) -> Deployment:
    from forcegate.cli.environments import settings_of
    from frontend.deployment.commands import Deployment

    parts = tuple(name for name, wanted in (("monitoring", monitoring), ("postgres", postgres)) if wanted)
    return Deployment(settings_of().root.resolve(), profile, parts)


def _run(commands: Sequence[Sequence[str]], dry: bool) -> None:
    """Prints and runs commands, one after the other, and leaves with the status of the first that fails."""
    for command in commands:
        typer.echo(shlex.join(command))
        if dry:
            continue
        try:
            status = subprocess.run(command).returncode
        except FileNotFoundError:
            raise SetupError("docker is not installed.", "forcegate deploy doctor says what this machine lacks.") from None
        if status:
            raise typer.Exit(status)


def _make_secrets(chosen: Deployment, dry: bool) -> None:
    """The passwords that the parts need and that are not there yet."""
    from frontend.deployment.commands import make_secrets

    if dry or not chosen.parts:
        return
    folder = Path(os.environ.get("FORCEGATE_SECRETS") or chosen.root / "docker" / "secrets")
    for path in make_secrets(folder, chosen.parts):
        messages().print(f"made a new secret: {escape(str(path))}", soft_wrap=True)


@deploy.command()
def build(profile: Profile = "cpu", dry_run: Dry = False) -> None:
    """Build the images."""
    _run(_chosen(profile, False, False).build(), dry_run)


@deploy.command()
def up(profile: Profile = "cpu", monitoring: Monitoring = False, postgres: Postgres = False, dry_run: Dry = False) -> None:
    """Put the models in place, start everything, and wait until it is healthy."""
    chosen = _chosen(profile, monitoring, postgres)
    _make_secrets(chosen, dry_run)
    _run(chosen.up(), dry_run)


@deploy.command()
def key(
    name: Annotated[str, typer.Argument(help="What the key is called in the list.", show_default=False)],
    scope: Annotated[str, typer.Option(help="read, compute or operate.")] = "compute",
    profile: Profile = "cpu",
    postgres: Postgres = False,
    dry_run: Dry = False,
) -> None:
    """Make an API key and print it. The gateway does not start before there is one."""
    chosen = _chosen(profile, False, postgres)
    _make_secrets(chosen, dry_run)
    _run(chosen.key([name, "--scope", scope]), dry_run)


@deploy.command()
def export(
    models: Annotated[list[str] | None, typer.Argument(help="Models; those of the profile when none is named.")] = None,
    profile: Profile = "cpu",
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Accept licences that have to be accepted.")] = False,
    dry_run: Dry = False,
) -> None:
    """Run the export job, which alone writes into the volume of models."""
    if accept_licence and not models:
        raise InvalidRequest("A licence is accepted for models that are named.", "Name them.")
    words = [*(models or ()), *(["--accept-licence"] if accept_licence else [])]
    _run([_chosen(profile, False, False).export(words)], dry_run)


@deploy.command()
def down(profile: Profile = "cpu", monitoring: Monitoring = False, postgres: Postgres = False, dry_run: Dry = False) -> None:
    """Stop everything; requests in flight finish first, and volumes stay."""
    _run(_chosen(profile, monitoring, postgres).down(), dry_run)


@deploy.command()
def restart(
    service: Service = "",
    profile: Profile = "cpu",
    monitoring: Monitoring = False,
    postgres: Postgres = False,
    dry_run: Dry = False,
) -> None:
    """Restart one service, or all."""
    _run(_chosen(profile, monitoring, postgres).restart(service), dry_run)


@deploy.command()
def logs(
    service: Service = "",
    profile: Profile = "cpu",
    monitoring: Monitoring = False,
    postgres: Postgres = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on.")] = False,
    dry_run: Dry = False,
) -> None:
    """The end of the logs of one service, or of all."""
    _run(_chosen(profile, monitoring, postgres).logs(service, follow), dry_run)


@deploy.command()
def scale(
    workers: Annotated[int, typer.Argument(min=1, max=64, help="Workers for tasks.")],
    profile: Profile = "cpu",
    monitoring: Monitoring = False,
    postgres: Postgres = False,
    dry_run: Dry = False,
) -> None:
    """Run so many workers for tasks."""
    if workers > 1 and not postgres:
        messages().print("On SQLite several workers share one disk; --postgres is for many.")
    _run(_chosen(profile, monitoring, postgres).scale(workers), dry_run)


@deploy.command()
def clean(
    profile: Profile = "cpu",
    monitoring: Monitoring = False,
    postgres: Postgres = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Dry = False,
) -> None:
    """Stop everything and remove its volumes: models, tasks, keys."""
    if not (yes or dry_run):
        typer.confirm("This removes models, tasks and keys. Go on?", abort=True)
    _run(_chosen(profile, monitoring, postgres).clean(), dry_run)


@deploy.command()
def status(profile: Profile = "cpu", monitoring: Monitoring = False, postgres: Postgres = False, dry_run: Dry = False) -> None:
    """A table of services, their health, GPUs and models. Exits with 1 where one is not healthy."""
    from frontend.deployment.doctor import containers, run

    chosen = _chosen(profile, monitoring, postgres)
    commands = (chosen.status(), chosen.ask_gateway())
    if dry_run:
        _run(commands, True)
        return
    if (told := run(commands[0])) is None:
        raise SetupError("docker compose does not answer.", "forcegate deploy doctor says what this machine lacks.")
    found = containers(told)
    wide().print(services(found, json.loads(run(commands[1]) or "{}")))
    if not found or any(each["health"] not in ("healthy", "-") or each["state"] != "running" for each in found):
        raise typer.Exit(FAILED)


def services(found: Sequence[dict[str, str]], health: dict[str, Any]) -> Table:
    """The containers, and below triton what its families serve from where."""
    table = Table()
    for column in ("service", "state", "health", "device", "models"):
        table.add_column(column, overflow="fold")
    for each in found:
        good = each["health"] in ("healthy", "-") and each["state"] == "running"
        table.add_row(each["service"], each["state"], f"[{'green' if good else 'red'}]{escape(each['health'])}[/]", "", "")
        if each["service"] == "triton":
            for name, worker in health.get("workers", {}).items():
                if worker["models"]:
                    device = " ".join(filter(None, (worker["device"], worker["gpu_name"])))
                    table.add_row(f"  {name}", "", worker["status"], escape(device), ", ".join(worker["models"]))
    return table


@deploy.command()
def doctor(
    profile: Profile = "cpu",
    cuda: Annotated[int, typer.Option(min=12, max=13, help="CUDA of the images.")] = 13,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Check the machine, and say how to mend what is missing. Exits with 1 where a check fails."""
    from exporters import consent
    from forcefields import catalogue as catalogues
    from forcegate.cli.environments import settings_of
    from frontend.deployment import doctor as checks
    from frontend.deployment.commands import PROFILES

    if profile not in PROFILES:
        raise SetupError(f"There is no profile {profile[:80]!r}.", f"Known are {', '.join(PROFILES)}.")
    settings, catalogue = settings_of(), catalogues.load()
    models = [catalogue.chosen(model) for model in (("lj-argon",) if profile == "test" else settings.models)]
    accepted = [model.name for model in models if consent.given(settings.state, model)]
    machine = checks.Machine(checks.run)
    findings = list(checks.examine(profile, settings.port, models, settings.repository, accepted, machine, cuda))
    if as_json:
        typer.echo(json.dumps([finding.__dict__ for finding in findings], indent=2))
    else:
        table = Table()
        for column in ("check", "result", "found", "what to do"):
            table.add_column(column, overflow="fold")
        colours = {checks.OK: "green", checks.WARNING: "yellow", checks.FAILED: "red"}
        for one in findings:
            table.add_row(one.check, f"[{colours[one.result]}]{one.result}[/]", escape(one.told), escape(one.mend))
        wide().print(table)
    if any(finding.result == checks.FAILED for finding in findings):
        raise typer.Exit(FAILED)
