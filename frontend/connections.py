"""One connection to the gateway: uvicorn's protocol, which here also ends connections that never come to a request."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS: Final = 20.0
"""Time from the connection, or from the first byte of a further request, to the end of the request's headers."""
HEADER_BYTES: Final = 64 * 2**10
"""Longest headers, the first bytes of the body that come with them included."""


class Connection(HttpToolsProtocol):
    """uvicorn waits for headers without an end, and takes as many as are sent: both would let one client hold any number of
    connections, or any amount of memory, without a request that a limit could refuse."""

    _due: asyncio.TimerHandle | None = None
    _read = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._headers_have_come()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self._due is not None:
            self._read += len(data)
            if self._read > HEADER_BYTES and not self._ends_headers(data):
                self.logger.warning("headers are too long")
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        super().on_message_begin()
        if self._due is None:
            self._wait_for_headers()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._headers_have_come()
        super().on_headers_complete()

    def _ends_headers(self, data: bytes) -> bool:
        """Whether what is too long is the body that comes with the headers rather than they."""
        return self._read - len(data) <= HEADER_BYTES and b"\r\n\r\n" in data[: HEADER_BYTES - (self._read - len(data))]

    def _wait_for_headers(self) -> None:
        self._read = 0
        self._due = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _headers_have_come(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _too_late(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()
