"""``forcegate placement``: which model would go to which device under a profile, and why."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from forcegate.cli.environments import settings_of
from forcegate.cli.terminal import FAILED, Json, messages, wide

if TYPE_CHECKING:
    from frontend.scheduler.device import Device
    from frontend.scheduler.plan import Placed
    from frontend.scheduler.profile import Profile

CONNECT_SECONDS = 5.0
APPLY_SECONDS = 3600.0

placement = typer.Typer(help="Placement profiles: which model lives on which device.", no_args_is_help=True)


@placement.command("list")
def list_profiles() -> None:
    """List the profiles that come with Forcegate."""
    from frontend.scheduler import profile as profiles

    table = Table()
    for column in ("profile", "made for", "description"):
        table.add_column(column)
    for name in profiles.names():
        profile = profiles.load(name)
        devices = profile.devices
        table.add_row(name, f"{devices.count} x {devices.kind}, {devices.memory_gb:g} GB", escape(profile.description))
    wide().print(table)


@placement.command()
def plan(
    name: Annotated[str, typer.Argument(metavar="PROFILE", help="Name of a profile, or path of a .yaml.")], as_json: Json = False
) -> None:
    """Print what would go where under a profile, and why; nothing is loaded.

    Exits with 1 where a model of the profile finds no place.
    """
    from forcefields import catalogue as catalogues
    from frontend.scheduler import profile as profiles
    from frontend.scheduler.footprint import Footprints
    from frontend.scheduler.inventory import readers
    from frontend.scheduler.plan import devices_for
    from frontend.scheduler.plan import plan as made

    settings = settings_of()
    profile, catalogue = profiles.load(name), catalogues.load()
    profiles.check(profile, catalogue, name)
    devices, assumed = devices_for(profile, readers().read())
    placed = made(profile, catalogue, devices, Footprints(settings.state / "footprints.json"))
    if as_json:
        typer.echo(json.dumps({"profile": name, "assumed": assumed, "placed": [asdict(each) for each in placed]}, indent=2))
    else:
        if assumed:
            devices_ = profile.devices
            messages().print(f"This machine has no {devices_.count} x {devices_.kind}: the plan is for assumed ones.")
        _print(profile, placed, devices)
    if any(each.decision.action != "load" for each in placed):
        raise typer.Exit(FAILED)


@placement.command()
def apply(
    name: Annotated[str, typer.Argument(metavar="PROFILE", help="Name of a profile, or path of a .yaml.")], as_json: Json = False
) -> None:
    """Do what `plan` prints, on the service that runs on this machine: its rules, and the models that it loads.

    Models that are new are loaded before others go, where there is room for both. Requests wait for what they need, and none is
    lost. It holds until the service ends.
    """
    from forcegate.cli.devices import picture
    from frontend.scheduler import profile as profiles

    settings, text = settings_of(), profiles.text(name)
    profiles.parse(text, name)
    told = asyncio.run(_applied(settings.state, name, text))
    if as_json:
        typer.echo(json.dumps({"profile": name, "devices": told["devices"], "models": list(told["models"].values())}, indent=2))
    else:
        wide().print(picture({"devices": told["devices"], "models": list(told["models"].values())}))


async def _applied(state: Path, name: str, text: str) -> dict[str, Any]:
    """Tells the service's scheduler, and returns what it tells when it is done."""
    from forcegate.errors import ServerUnavailable
    from frontend.scheduler.follower import Follower

    follower = Follower(state, "forcegate placement apply")
    following = asyncio.create_task(follower.run())
    try:
        until = time.monotonic() + CONNECT_SECONDS
        while not (follower.connected and follower.state is not None) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await follower.do("apply", APPLY_SECONDS, profile=text, name=name)
        if follower.state is None:
            raise ServerUnavailable("The service has ended.", "`forcegate serve` starts it.")
        return follower.state
    finally:
        following.cancel()


def _print(profile: Profile, placed: Sequence[Placed], devices: Sequence[Device]) -> None:
    from frontend.scheduler.plan import by_device

    table = Table(title=escape(profile.description), title_justify="left")
    for column in ("device", "model", "memory", "why"):
        table.add_column(column, justify="right" if column == "memory" else "left", overflow="fold")
    spare = {sorted(devices, key=lambda device: device.order)[at].id for at in profile.spare}
    for device, there in by_device(placed, devices).items():
        if not there:
            table.add_row(device, "-", "", "spare: stands in for one that is lost" if device in spare else "free for other models")
        for each in there:
            name = each.model if not each.replica else f"{each.model} (replica {each.replica})"
            table.add_row(device or "[red]none[/]", name, f"{each.base_mb} MB", escape("; ".join(each.decision.reasons)))
    wide().print(table)
