"""The gateway's process: ``python -m frontend.gateway`` with the settings in FORCEGATE_* variables.

The supervisor gives it three arguments: the descriptors of the listening socket and of a pipe, and its number. It writes a byte to
the pipe when it accepts connections. Without them it opens the port itself.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn

from forcegate.errors import SetupError
from frontend import settings
from frontend.security import listening
from frontend.telemetry import configure_logging

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Tells through ``ready``, a pipe's descriptor, that it accepts connections. Where the supervisor has ended, or has given up
    waiting, it ends as after SIGTERM."""

    ready: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept."""
        await super().startup(sockets)
        if self.ready is not None:
            try:
                os.write(self.ready, b".")
            except BrokenPipeError:  # nobody waits any more: what has been accepted by now is answered, and that is all
                self.should_exit = True
            os.close(self.ready)


def main(given: Sequence[str] = ()) -> int:
    """Serves until SIGTERM or SIGINT; requests in flight then get ``drain_seconds`` to finish. Returns the exit status."""
    try:
        values = settings.load()
        listening.check(values)
        values.export_tls()
    except SetupError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    configure_logging(values.log_level, given[2] if given and values.gateways > 1 else "")
    # Decoders are forked and execute another program at once, so gRPC need not prepare for a fork, nor write lines about it that
    # are not JSON. It reads this when it is imported.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from frontend.app import create_app
    from frontend.connections import Connection

    app = create_app(values)
    # What is there now stays for ever, and need not be looked through for garbage again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    server = Server(
        uvicorn.Config(
            app,
            host=values.host,
            port=values.port,
            loop="uvloop",
            http=Connection,
            ssl_certfile=values.tls_certificate or None,
            ssl_keyfile=values.tls_key or None,
            lifespan="on",
            log_config=None,
            access_log=False,  # frontend.middleware writes it, with the request's id
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(values.drain_seconds)),
        )
    )
    sockets = None
    if given:
        server.ready = int(given[1])
        sockets = [socket.socket(fileno=int(given[0]))]
    # uvicorn raises the signal again when it is done; a stop that was asked for is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    server.run(sockets)
    return 0 if server.started else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
