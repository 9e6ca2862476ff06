"""``forcegate tasks``: calculations in the service's queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from forcegate.cli.terminal import FAILED, Json, Url, messages, wide
from forcegate.errors import InvalidRequest

Task = Annotated[str, typer.Argument(help="Id of the task.", show_default=False)]

tasks = typer.Typer(help="Calculations in the service's queue: submit, follow, cancel.", no_args_is_help=True)


@tasks.command("list")
def list_tasks(
    status: Annotated[str, typer.Option(help="QUEUED, RUNNING, COMPLETED, FAILED, CANCELLED or TIMEOUT.")] = "",
    kind: Annotated[str, typer.Option(help="Such as optimization.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    url: Url = "",
    as_json: Json = False,
) -> None:
    """List tasks, the newest first."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        found = client.tasks(status=status or None, kind=kind or None, limit=limit)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table()
    table.add_column("task", no_wrap=True)  # to be copied
    for column in ("kind", "models", "status", "priority", "position", "created", "progress"):
        table.add_column(column, overflow="fold")
    for view in found:
        row = (view["task_id"], view["kind"], ", ".join(view["models"]), view["status"], view["priority"])
        table.add_row(*row, str(view["position"] or "-"), view["created_at"][:19], _progress(view))
    wide().print(table)


@tasks.command()
def show(task: Task, url: Url = "") -> None:
    """One task, as JSON."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        typer.echo(json.dumps(client.task(task), indent=2))


@tasks.command()
def result(task: Task, url: Url = "") -> None:
    """The result of a completed task, as JSON."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        typer.echo(json.dumps(client.result(task), indent=2))


@tasks.command()
def follow(task: Task, url: Url = "") -> None:
    """Show the steps of a task until it is final; the exit code is 1 where it did not complete. Ctrl-C leaves it running."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        view = _follow(client, task)
    if view["status"] != "COMPLETED":
        messages().print(f"{task} {view['status']}: {(view['error'] or {}).get('detail', '')}", markup=False)
        raise typer.Exit(FAILED)


@tasks.command()
def cancel(task: Task, url: Url = "") -> None:
    """End a task."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        typer.echo(client.cancel(task)["status"])


@tasks.command()
def retry(task: Task, url: Url = "") -> None:
    """Queue a task that failed, was cancelled or timed out once more; it goes on from its last state."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        typer.echo(client.retry(task)["status"])


@tasks.command()
def submit(
    kind: Annotated[str, typer.Argument(help="Such as optimization or bulk-modulus.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="A structure file; the last structure of several.", show_default=False)],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model.", show_default=False)],
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="NAME=VALUE, the value as JSON, such as fmax=0.01; repeat it.")
    ] = None,
    priority: Annotated[str, typer.Option(help="CRITICAL, HIGH, NORMAL or LOW.")] = "NORMAL",
    url: Url = "",
) -> None:
    """Queue a calculation and print the id of its task."""
    from forcegate.client import Client

    parameters = dict(_parameter(each) for each in parameter or ())
    with Client(url, connect_timeout=2.0) as client:
        answer = client.submit(kind, file, model, options={"priority": priority}, **parameters)
    typer.echo(answer["task_id"])


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"{text!r} is no parameter.", "It has to look like NAME=VALUE.")
    try:
        return name, json.loads(value)
    except ValueError:  # a word
        return name, value


def _follow(client: Any, task: str) -> dict[str, Any]:
    """Shows the events of a task, and says what it is at its end."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[numbers]}"), TimeElapsedColumn())
    with Progress(*columns, console=messages(), transient=True) as display:
        bar = display.add_task("waiting", total=None, numbers="")
        for event in client.events(task):
            if event["event"] == "progress":
                display.update(bar, description=event.get("phase", ""), total=event.get("steps"), completed=event.get("step", 0))
                display.update(bar, numbers=_numbers(event))
            elif event["event"] == "log":
                display.console.print(event.get("text", ""), markup=False)
    return dict(client.task(task))


def _progress(view: Mapping[str, Any]) -> str:
    return _numbers(view["progress"]) if view["progress"] else "-"


def _numbers(step: Mapping[str, Any]) -> str:
    known = (
        ("step", "step", "d", ""),
        ("E", "energy", ".4f", " eV"),
        ("fmax", "fmax", ".4f", " eV/A"),
        ("T", "temperature", ".0f", " K"),
    )
    return "  ".join(f"{word} {step[name]:{form}}{unit}" for word, name, form, unit in known if step.get(name) is not None)
