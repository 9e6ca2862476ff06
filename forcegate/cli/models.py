"""``forcegate models``: what is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table

from forcegate.cli.terminal import Json, Url, console


def models(url: Url = "", as_json: Json = False) -> None:
    """List the models: whether each can be used now, what it needs first where it cannot, and what it is; --json says what for."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        found = client.models()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(title=f"{len(found)} models at {client.url}", title_justify="left")
    columns = ("name", "state", "needs", "functional", "elements", "heads", "dispersion", "licence", "checkpoint")
    for column in columns:
        table.add_column(column, justify="right" if column == "elements" else "left", overflow="fold")
    for model in sorted(found, key=lambda model: (model.get("state") != "ready", model["name"])):
        table.add_row(*_row(model))
    console().print(table)


def _row(model: Mapping[str, Any]) -> list[str]:
    state = str(model.get("state", ""))
    return [
        model["name"],
        f"[green]{state}[/]" if state == "ready" else state,
        ", ".join(model.get("needs") or ()) or "-",
        str(model.get("functional", "")),
        str(len(model.get("elements") or ())),
        ", ".join(model.get("heads") or ()) or "-",
        str(model.get("dispersion", "")),
        str(model.get("licence", "")),
        str(model.get("checkpoint_sha256") or "")[:12],
    ]
