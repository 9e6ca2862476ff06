"""``forcegate models``: what is served."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer
from rich.table import Table

from forcegate.cli.terminal import Json, Url, console


def models(url: Url = "", as_json: Json = False) -> None:
    """List the models: family, functional, state, device, elements, heads, dispersion policy, licence, checkpoint."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        found = client.models()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table(title=f"{len(found)} models at {client.url}", title_justify="left")
    for column in ("name", "family", "functional", "state", "device", "elements", "heads", "dispersion", "licence", "checkpoint"):
        table.add_column(column, justify="right" if column == "elements" else "left", overflow="fold")
    for model in sorted(found, key=lambda model: (model.get("state") != "ready", model["name"])):
        table.add_row(*_row(model))
    console().print(table)


def _row(model: Mapping[str, Any]) -> list[str]:
    state = str(model.get("state", ""))
    return [
        model["name"],
        str(model.get("service", "")),
        str(model.get("functional", "")),
        f"[green]{state}[/]" if state == "ready" else state,
        str(model.get("device") or "-"),
        str(len(model.get("elements") or ())),
        ", ".join(model.get("heads") or ()) or "-",
        str(model.get("dispersion", "")),
        str(model.get("licence", "")),
        str(model.get("checkpoint_sha256", ""))[:12],
    ]
