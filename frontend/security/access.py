"""The key of a request, and whether its scope is enough."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterable
from typing import Final

from starlette.types import Scope as Connection

from forcegate.errors import Forbidden, ForcegateError, ServerUnavailable, Unauthenticated
from frontend.security.keys import Key, KeyStore, Scope, id_of
from frontend.telemetry import Call

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 1.0
"""A revocation counts everywhere after so long."""
SOONEST_SECONDS: Final = 0.1
"""Shortest time between two looks for a key that is not known yet: whoever sends wrong keys shall not keep the database busy."""
STALE_SECONDS: Final = 600.0
"""So long keys go on being valid while the database is away; after it nobody is let in, since none could be revoked."""

OPEN: Final = re.compile(r"/|/live|/ready|/health|/docs|/docs/assets/[^/]*|/redoc|/openapi\.json")
"""What needs no key: is it up, and how is it used. Nothing of anybody's."""
COMPUTE: Final = re.compile(
    r"/api/v1/(single_point|batch|multi_model|optimization|stability|bulk_modulus|heat_capacity|elasticity|interaction_energy"
    r"|qmof_energy|tasks/.+|structures(/.*)?)"
)
"""What is changed or computed with the scope ``compute``. What is neither here nor only read needs ``operate``."""


def needed(method: str, path: str, metrics_open: bool = False) -> Scope | None:
    """The scope that a request needs; None where it needs no key. ``path`` has no trailing slash."""
    if method in ("GET", "HEAD", "OPTIONS"):
        return None if OPEN.fullmatch(path) or (metrics_open and path == "/metrics") else Scope.READ
    return Scope.COMPUTE if COMPUTE.fullmatch(path) else Scope.OPERATE


class Gatekeeper:
    """Knows the keys, as of the last second, and lets requests in. Used on one event loop; the database is asked in a thread."""

    def __init__(self, store: KeyStore, metrics_open: bool = False) -> None:
        self._store = store
        self._metrics_open = metrics_open
        self._keys: dict[str, Key] = {}
        self._loaded = float("-inf")
        self._loading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keeps the keys current until it is cancelled."""
        while True:
            await self._refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    async def close(self) -> None:
        """Ends the connections to the database."""
        if self._loading is not None:
            await asyncio.gather(self._loading, return_exceptions=True)
        await asyncio.to_thread(self._store.close)

    async def admit(self, connection: Connection, call: Call) -> None:
        """Sets ``call.key``.

        Raises:
            Unauthenticated: there is no valid key.
            Forbidden: its scope is too small.
            ServerUnavailable: keys cannot be checked at the moment.
        """
        scope = needed(connection["method"], connection["path"], self._metrics_open)
        if scope is None:
            return
        token = token_of(connection["headers"])
        if not token:
            raise Unauthenticated("This service needs an API key.")
        call.key = key = await self._key(token)
        if not key.scope.covers(scope):
            raise Forbidden(f"This needs a key with the scope `{scope}`, and the one that was sent has `{key.scope}`.")

    async def _key(self, token: str) -> Key:
        identifier = id_of(token)
        if identifier is None:
            raise Unauthenticated("What was sent is no API key of Forcegate.")
        now = time.monotonic()
        if identifier not in self._keys and now - self._loaded > SOONEST_SECONDS:
            await self._refresh()  # it may have been made a moment ago
        if time.monotonic() - self._loaded > STALE_SECONDS:
            raise ServerUnavailable("API keys cannot be checked: their database does not answer.")
        key = self._keys.get(identifier)
        if key is None or not key.is_of(token):
            raise Unauthenticated("The API key is not known here.")
        if (state := key.state(time.time())) != "valid":
            raise Unauthenticated(f"The API key {key.id} is {state}.")
        return key

    async def _refresh(self) -> None:
        """Reads the keys; who comes while that is being done waits for the same answer."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        started = time.monotonic()
        try:
            found = await asyncio.to_thread(self._store.all)
        except ForcegateError as error:
            log.warning("keys cannot be read", extra={"detail": error.detail})
            return
        self._keys = {key.id: key for key in found}
        self._loaded = started


def token_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The key in a request's headers, ``Authorization: Bearer`` or ``X-API-Key``; empty where there is none."""
    bearer = ""
    for name, value in headers:
        if name == b"x-api-key":
            return value.decode("latin-1").strip()
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            bearer = value[7:].decode("latin-1").strip()
    return bearer
