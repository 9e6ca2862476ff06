"""``forcegate devices``: which model lives where."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from forcegate.cli.terminal import Json, Url, wide

SECONDS = 1.0
BAR = 20


def devices(
    url: Url = "", once: Annotated[bool, typer.Option("--once", help="Print them once and leave.")] = False, as_json: Json = False
) -> None:
    """Show the devices and the models on them, until Ctrl-C."""
    from forcegate.client import Client

    with Client(url, connect_timeout=2.0) as client:
        found = client.call("GET", "/api/v1/scheduler/devices")
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        console = wide()
        if once or not console.is_terminal:
            console.print(picture(found))
            return
        with Live(picture(found), console=console) as live:
            while True:
                time.sleep(SECONDS)
                live.update(picture(client.call("GET", "/api/v1/scheduler/devices")))


def picture(found: Mapping[str, Any]) -> Group:
    """One table of devices, one of models."""
    return Group(_devices(found["devices"]), _models(found["models"]))


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = Table(title="devices", title_justify="left")
    for column in ("device", "name", "state", "memory", "of models", "busy", "warm"):
        table.add_column(column)
    for device in devices:
        total, used = max(device["memory_total_mb"], 1), device["memory_used_mb"]
        full = min(round(BAR * used / total), BAR)
        table.add_row(
            escape(device["id"]),
            escape(device["name"]),
            escape(device["fault"] or device["state"]),
            f"{'█' * full}{'░' * (BAR - full)} {used} of {total} MB",
            "-" if device["memory_models_mb"] is None else f"{device['memory_models_mb']} MB",
            "-" if device["utilization"] is None else f"{device['utilization']:.0f} %",
            "-" if device["temperature"] is None else f"{device['temperature']:.0f} C",
        )
    return table


def _models(models: list[dict[str, Any]]) -> Table:
    table = Table(title="models", title_justify="left")
    for column in ("model", "state", "device", "instances", "memory", "unused for", "note"):
        table.add_column(column)
    for model in sorted(models, key=lambda model: (model["device"] is None, model["model"])):
        error = model["error"] or {}
        unloaded = f"unloaded: {model['evicted_for']}" if model["evicted_for"] else ""
        note = "pinned" if model["pinned"] else error.get("detail") or unloaded
        table.add_row(
            escape(model["model"]),
            f"[green]{model['state']}[/]" if model["state"] == "resident" else model["state"],
            escape(", ".join(model["instances"]) or "-"),
            " + ".join(map(str, model["instances"].values())) or "-",
            f"{model['memory_mb']} MB" if model["memory_mb"] else "-",
            "-" if model["idle_seconds"] is None else f"{model['idle_seconds']:.0f} s",
            escape(note),
        )
    return table
