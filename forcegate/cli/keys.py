"""``forcegate keys``: the API keys of a service, in its database. For its administrator, with the settings of the service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from forcegate.cli.terminal import Json, messages, wide
from forcegate.errors import InvalidRequest

if TYPE_CHECKING:
    from frontend.security.keys import Key, KeyStore

if find_spec("frontend") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

keys = typer.Typer(help="API keys of a service: create, list, revoke.", no_args_is_help=True)


class Scopes(StrEnum):
    """The scopes of ``frontend.security.keys``, for ``--help``."""

    read = "read"
    compute = "compute"
    operate = "operate"


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is called in the list.", show_default=False)],
    user: Annotated[str, typer.Option(help="Whose tasks it makes; NAME when left out.", show_default=False)] = "",
    scope: Annotated[
        Scopes, typer.Option(help="read: look. compute: also calculate, own tasks. operate: also load models, everybody's tasks.")
    ] = Scopes.compute,
    expires: Annotated[str, typer.Option(help="After which time, such as 90d, 12h or 30m; never when left out.")] = "",
    as_json: Json = False,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from frontend.security.keys import Scope

    with _store() as store:
        token, key = store.create(name, user or name, Scope(scope.value), _seconds(expires) if expires else None)
    if as_json:
        typer.echo(json.dumps(_row(key) | {"key": token}))
        return
    messages().print(f"Key {key.id} for {key.user}, scope {key.scope}. It is shown this once; only its hash is kept.", markup=False)
    typer.echo(token)


@keys.command("list")
def list_keys(as_json: Json = False) -> None:
    """List all keys, without what they are."""
    with _store() as store:
        found = [_row(key) for key in store.all()]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table()
    for column in ("id", "name", "user", "scope", "state", "created", "expires"):
        table.add_column(column, overflow="fold")
    for row in found:
        table.add_row(*(str(row[column] or "-")[:100] for column in ("id", "name", "user", "scope", "state", "created", "expires")))
    wide().print(table)


@keys.command()
def revoke(identifier: Annotated[str, typer.Argument(help="Id of the key, as `list` shows it.", show_default=False)]) -> None:
    """End a key. Every gateway refuses it within a second or two."""
    with _store() as store:
        key = store.revoke(identifier)
    messages().print(f"Key {key.id} ({key.name}) is revoked.", markup=False)


@contextmanager
def _store() -> Iterator[KeyStore]:
    from frontend import settings
    from frontend.security.keys import KeyStore

    store = KeyStore(settings.load())
    try:
        yield store
    finally:
        store.close()


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if found is None or not int(found[1]):
        raise InvalidRequest(f"{text!r} is no time.", "Write a number and s, m, h or d, such as 90d.")
    return int(found[1]) * UNITS[found[2]]


def _row(key: Key) -> dict[str, str | None]:
    return {
        "id": key.id,
        "name": key.name,
        "user": key.user,
        "scope": str(key.scope),
        "state": key.state(datetime.now(UTC).timestamp()),
        "created": _date(key.created),
        "expires": None if key.expires is None else _date(key.expires),
    }


def _date(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
