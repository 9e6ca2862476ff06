"""The owner's side of the socket (wire.py): one client for each connection, commands of people, and the state that all are told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from forcegate.errors import ForcegateError, InvalidRequest
from frontend.scheduler import wire
from frontend.scheduler.owner import Owner

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.5
UNREAD_BYTES: Final = 16 * 2**20
"""A client that has left so much unread hangs; it is cut off, so that what it holds is free again."""

Command = Callable[[Mapping[str, Any]], Awaitable[None]]


class Connection:
    """One client of the owner."""

    def __init__(self, name: str, writer: asyncio.StreamWriter) -> None:
        self.name, self._writer = name, writer

    def tell(self, message: Mapping[str, Any]) -> None:
        """Sends one message, sooner or later."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNREAD_BYTES:
            log.error("a client of the scheduler does not read", extra={"client": self.name})
            transport.abort()
            return
        self._writer.write(wire.line(message))

    def granted(self, ask: int) -> None:
        """See ``Client``."""
        self.tell({"granted": ask})

    def refused(self, ask: int, error: ForcegateError) -> None:
        """See ``Client``."""
        self.tell({"refused": ask, "error": wire.error_to_dict(error)})

    def recall(self, model: str) -> None:
        """See ``Client``."""
        self.tell({"recall": model})


class Server:
    """Listens for clients, and keeps time for the owner.

    Args:
        folder: the state folder.
        observe: called before each tick: compares what the owner knows with what is there.
        state: makes what all clients are told.
        commands: what people may ask for, by name.
        tick_seconds: between two ticks of the owner.
    """

    def __init__(
        self,
        owner: Owner,
        folder: Path,
        observe: Callable[[], Awaitable[None]],
        state: Callable[[], dict[str, Any]],
        commands: Mapping[str, Command],
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self._tick_seconds = tick_seconds
        self._owner, self._folder, self._observe, self._state, self._commands = owner, folder, observe, state, commands
        self._connections: set[Connection] = set()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serves until it is cancelled."""
        server = await asyncio.start_unix_server(self._serve, sock=wire.listener(self._folder), limit=wire.LONGEST_LINE)
        try:
            while True:
                await self._observe()
                self._owner.tick()
                self._tell(self._state())
                await asyncio.sleep(self._tick_seconds)
        finally:
            server.close()
            (self._folder / wire.SOCKET).unlink(missing_ok=True)
            for connection in self._connections:
                connection._writer.close()
            await self._owner.close()

    def _tell(self, state: dict[str, Any]) -> None:
        for connection in self._connections:
            connection.tell({"state": state})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await wire.read(reader) or {}
        connection = Connection(str(first.get("hello", "unknown"))[:100], writer)
        self._connections.add(connection)
        connection.tell({"state": self._state()})
        try:
            while (message := await wire.read(reader)) is not None:
                self._take(connection, message)
        finally:
            self._connections.discard(connection)
            self._owner.gone(connection)
            self._owner.step()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _take(self, connection: Connection, message: Mapping[str, Any]) -> None:
        match message:
            case {"ask": int(number), "models": list(models), "priority": int(priority)}:
                self._owner.ask(connection, number, [str(model) for model in models], priority, _pairs(message))
            case {"cancel": int(number)}:
                self._owner.cancel(connection, number)
            case {"release": str(model)}:
                self._owner.release(connection, model)
            case {"used": list(models)}:
                self._owner.used(str(model) for model in models)
                self._owner.told(connection, _numbers(message.get("uses")), _numbers(message.get("waiting")))
                self._owner.working(_pairs(message))
            case {"do": int(number), "what": str(what)}:
                task = asyncio.create_task(self._do(connection, number, what, message))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            case _:
                log.error("a message to the scheduler is not known", extra={"client": connection.name})

    async def _do(self, connection: Connection, number: int, what: str, message: Mapping[str, Any]) -> None:
        try:
            if (command := self._commands.get(what)) is None:
                raise InvalidRequest(f"The scheduler does not know {what[:40]!r}.")
            await command(message)
        except ForcegateError as error:
            connection.refused(number, error)
        else:
            self._tell(self._state())  # whoever asks for the state after the answer finds what was done
            connection.tell({"done": number})


def _pairs(message: Mapping[str, Any]) -> dict[str, int]:
    return {model: int(pairs) for model, pairs in _numbers(message.get("edges")).items()}


def _numbers(told: object) -> dict[str, float]:
    """Numbers by model; nothing where the message makes no sense."""
    if not isinstance(told, Mapping):
        return {}
    return {str(model): float(number) for model, number in told.items() if isinstance(number, int | float)}
