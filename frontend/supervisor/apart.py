"""Gateways without a Triton of their own: several processes behind one port, each started again when it ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import time

from forcegate import jsonlog
from forcegate.errors import SetupError
from frontend.settings import Settings
from frontend.supervisor.gateways import Gateways
from frontend.supervisor.process import ChildProcess, keep_short

log = logging.getLogger(__name__)

START_SECONDS = 60.0
LIFE_SECONDS = 10.0
"""A gateway that ends sooner after its start counts as failing to start."""
ATTEMPTS = 5


def run(settings: Settings) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit status: 1 where a gateway ends again and again.

    Raises:
        SetupError: the port cannot be opened, or a gateway does not start.
    """
    jsonlog.configure(settings.log_level, process="supervisor")
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    gateways = Gateways(settings, settings.state / "logs" / "gateway.log")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await gateways.start(START_SECONDS)
    stopped = asyncio.create_task(stop.wait())
    keepers = [asyncio.create_task(_keep(gateways, process)) for process in gateways.processes]
    writing = asyncio.create_task(keep_short([gateways.processes[0].log]))
    try:
        await asyncio.wait([stopped, *keepers], return_when=asyncio.FIRST_COMPLETED)
        return 0 if stopped.done() else 1
    finally:
        for task in (stopped, writing, *keepers):
            task.cancel()
        await asyncio.gather(stopped, writing, *keepers, return_exceptions=True)
        await gateways.stop(settings.drain_seconds + 5)


async def _keep(gateways: Gateways, process: ChildProcess) -> None:
    """Starts a gateway again whenever it ends; returns when that has failed too often in a row."""
    failures = 0
    while failures < ATTEMPTS:
        started = time.monotonic()
        status = await process.wait() if process.running else -1
        failures = failures + 1 if time.monotonic() - started < LIFE_SECONDS else 0
        log.error("gateway ended", extra={"name_": process.name, "status": status, "failures": failures})
        await asyncio.sleep(0.2 * 2**failures - 0.2)
        try:
            await gateways.start_one(process, START_SECONDS)
        except (SetupError, OSError) as error:
            log.error("restart failed", extra={"name_": process.name, "detail": str(error)})
