"""A gateway whose supervisor is gone, or has given up waiting, when it has started: it ends in order, as after SIGTERM."""

from __future__ import annotations

import os
import socket
from typing import Any

import uvicorn

from frontend.gateway import Server


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ARG001
    raise AssertionError("nobody asks")


def started(writing: int) -> Server:
    """One that has been run until its end, with the end of a pipe to tell through."""
    server = Server(uvicorn.Config(app, lifespan="off", log_config=None))
    server.ready = writing
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.run([listener])
    return server


def test_it_ends_in_order_when_nobody_waits_for_it() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    server = started(writing)
    assert server.started
    assert server.should_exit
