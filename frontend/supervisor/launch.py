"""What a person sees of ``forcegate serve``: progress, a table of models, where to go next, and a clean end."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import psutil
from ase.data import chemical_symbols
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue, Variant
from forcegate import jsonlog
from forcegate.errors import SetupError
from frontend.security.listening import keys_needed
from frontend.settings import Settings
from frontend.supervisor import remains
from frontend.supervisor.checks import check_machine
from frontend.supervisor.service import Loaded, Service
from frontend.triton import restriction

Prepare = Callable[[Settings, Catalogue, list[str], Callable[[str], None]], Catalogue]

OWNER = "service.json"
"""File in the state folder that the service holds a lock on; it says which process that is."""
EXAMPLE = """{"model_name": "%s", "atoms": {"symbols": ["%s"], "positions": [[0, 0, 0]], "cell": %s}}"""


def run(settings: Settings, prepare: Prepare, setup_only: bool = False) -> int:
    """Prepares, serves until SIGINT or SIGTERM, stops everything.

    Returns:
        The exit status: 0 after a requested stop, 1 when the service could not be kept alive.

    Raises:
        SetupError: it cannot be started; the sentence says why.
    """
    # In a file or a pipe rich would fold the table into 80 columns.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 132)

    say = partial(_say, console)
    # The catalogue is read in many processes, by the same variables in each.
    os.environ[catalogues.EXTRA_FAMILIES] = settings.families
    os.environ[catalogues.STATE] = str(settings.state.resolve())
    settings.export_tls()
    catalogue = catalogues.load()
    dtypes = _dtypes(settings, catalogue)
    with _owned(settings):
        if not setup_only:
            remains.end(settings.state, say)
            check_machine(settings)
        catalogue = prepare(settings, catalogue, list(dtypes), say)
        if setup_only:
            return 0
        # The supervisor's own log; what a person should see goes through `say`.
        (settings.state / "logs").mkdir(parents=True, exist_ok=True)
        stream = (settings.state / "logs" / "supervisor.log").open("a") if settings.log_to == "files" else sys.stderr
        jsonlog.configure(settings.log_level, process="supervisor", stream=stream)
        return asyncio.run(
            _serve(settings, catalogue, [catalogue.resolve(name).with_dtype(dtype) for name, dtype in dtypes.items()], console)
        )


def _dtypes(settings: Settings, catalogue: Catalogue) -> dict[str, str]:
    """The models to load, by their canonical names, and what each is evaluated in.

    Raises:
        UnknownModel, UnsupportedDtype: there is no such model, or not in this dtype.
        SetupError: one model is named twice, in two dtypes.
    """
    dtypes: dict[str, str] = {}
    for variant in (catalogue.chosen(model) for model in settings.models):
        if dtypes.setdefault(variant.name, variant.dtype) != variant.dtype:
            raise SetupError(f"{variant.name} is to be loaded in {dtypes[variant.name]} and in {variant.dtype}.", "Name it once.")
    return dtypes


def _say(console: Console, line: str, style: str = "") -> None:
    """One line with the time. What errors and paths say is not markup: rich would take ``[/tmp/a]`` for the end of a style."""
    console.print(Text.assemble((f"{datetime.now(UTC):%H:%M:%S} ", "dim"), (line, style)))


async def _serve(settings: Settings, catalogue: Catalogue, variants: list[Variant], console: Console) -> int:
    settings = restriction.generated(settings)
    say = partial(_say, console)
    service = Service(settings, catalogue, settings.state / "model_repository", say)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, service.renew_soon)
    try:
        start = asyncio.create_task(_start(service, settings, variants, console))
        stopped = asyncio.create_task(stop.wait())
        waiting: set[asyncio.Future[Any]] = {stopped, service.failed}
        await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not start.done():
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            return 0
        start.result()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if service.failed.done():
            say(service.failed.result(), style="red")
            return 1
        return 0
    finally:
        say("stopping: requests in flight finish first")
        await service.stop()
        say("stopped, nothing is left behind")


async def _start(service: Service, settings: Settings, variants: list[Variant], console: Console) -> None:
    say = partial(_say, console)
    started = time.monotonic()
    say("starting tritonserver")
    await service.start_triton()
    say(f"tritonserver answers after {time.monotonic() - started:.1f} s")
    await service.start_scheduler()
    say(f"loading {', '.join(variant.name for variant in variants)}, each with its readiness gate")

    async def load(variant: Variant) -> Loaded:
        outcome = await service.load(variant)
        served, style = ("ready", "") if outcome.error is None else ("not served", "red")
        say(f"{variant.name}: {served} after {outcome.seconds:.1f} s", style)
        return outcome

    with _working(console, variants):
        outcomes = await asyncio.gather(*(load(variant) for variant in variants))
        await service.start_gateways()
    await service.start_workers()
    service.keep_alive()
    _print_outcomes(console, outcomes)
    for line in _where_to_go(settings, outcomes):
        console.print(Text(line))
    say(f"serving after {time.monotonic() - started:.1f} s; Ctrl-C stops everything")


@contextmanager
def _working(console: Console, variants: list[Variant]) -> Iterator[None]:
    """A clock on the terminal while models load, which takes seconds to a minute; nothing in a file."""
    if not console.is_terminal:
        yield
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for variant in variants:
            progress.add_task(f"{variant.name}: importing its package, reading its checkpoint, running its gate")
        yield


def _print_outcomes(console: Console, outcomes: list[Loaded]) -> None:
    console.print(_table(outcomes))
    for outcome in outcomes:
        if outcome.error is not None:
            console.print(Text.assemble((outcome.variant.name, "red"), f": {outcome.error}"))


def _table(outcomes: list[Loaded]) -> Table:
    table = Table("model", "dtype", "checkpoint", "gate", "nearest to its tolerance", "device", "memory", "seconds")
    for outcome in outcomes:
        gate = outcome.report.get("gate") if outcome.error is None else None
        checks: list[dict[str, Any]] = gate["checks"] if gate else []
        passed = f"{sum(check['passed'] for check in checks)}/{len(checks)}" + (
            " (golden now)" if gate and gate["mode"] == "golden" else ""
        )
        measured = [check for check in checks if check["deviation"] is not None]
        worst = max(measured, key=lambda check: check["deviation"] / check["tolerance"], default=None)
        table.add_row(
            Text(outcome.variant.name),
            str(outcome.report.get("arithmetic", {}).get("summary", outcome.variant.dtype)).removeprefix("full "),
            outcome.variant.checkpoint.sha256[:12],
            f"[green]{passed}[/]" if outcome.error is None else f"[red]{outcome.error.code}[/]",
            Text(f"{worst['name']}: {worst['deviation']:.1e} of {worst['tolerance']:.0e} {worst['unit']}" if worst else ""),
            Text(str(outcome.report.get("device", "")) if gate else ""),
            f"{outcome.report.get('resident_mb', 0)} MB" if gate else "",
            f"{outcome.seconds:.1f}",
        )
    return table


def address(settings: Settings) -> str:
    """The URL at which this machine reaches the gateway: a wildcard is an address to listen on, not one to go to."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://[{host}]:{settings.port}" if ":" in host else f"{scheme}://{host}:{settings.port}"


def _where_to_go(settings: Settings, outcomes: list[Loaded]) -> Iterator[str]:
    url = address(settings)
    own = f"http://127.0.0.1:{settings.metrics_port}/metrics"
    if not settings.gateways:
        yield f"gRPC     {settings.internal_host}:{settings.grpc_port}    metrics {own}"
        return
    yield f"REST     {url}  (documentation at {url}/docs)"
    yield f"gRPC     {settings.grpc_address}    metrics {own} and {url}/metrics"
    yield f"logs     {settings.state / 'logs' if settings.log_to == 'files' else 'here'}"
    ready = next((outcome.variant for outcome in outcomes if outcome.error is None), None)
    if ready is not None:
        symbol, half = ("Cu", "1.805") if 29 in ready.elements else (chemical_symbols[ready.elements[0]], "2.63")
        cell = f"[[0, {half}, {half}], [{half}, 0, {half}], [{half}, {half}, 0]]"
        body = EXAMPLE % (ready.name, symbol, cell)
        key = ' -H "Authorization: Bearer $FORCEGATE_API_KEY"' if keys_needed(settings) else ""
        yield "try      " + f"curl -s {url}/api/v1/single_point{key} -H 'Content-Type: application/json' -d '{body}'"


def owner(settings: Settings) -> dict[str, Any] | None:
    """What the process that has the state folder now told of itself: ``pid``, ``url``, perhaps nothing yet. None if none has it."""
    try:
        with (settings.state / OWNER).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _told(file)
    except FileNotFoundError:
        pass
    return None


def renew(settings: Settings) -> bool:
    """Has the service on the state folder read the catalogue anew (SIGHUP); False where none runs, or not on this machine."""
    told = owner(settings) or {}
    try:
        process = psutil.Process(int(told["pid"]))
        if "serve" not in process.cmdline():  # in a container: the number is another process's here
            return False
        process.send_signal(signal.SIGHUP)
    except (KeyError, psutil.Error):
        return False
    return True


def _told(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        told = json.loads(file.read())
    except ValueError:  # it has not been written yet
        return {}
    return told if isinstance(told, dict) else {}


@contextmanager
def _owned(settings: Settings) -> Iterator[None]:
    """Two services on one state folder would write into each other's reports and logs."""
    path: Path = settings.state / OWNER
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise SetupError(
            f"The state folder {settings.state} cannot be written: {error.strerror}.", "Set FORCEGATE_STATE."
        ) from None
    with file:
        if not _locked(file):
            raise SetupError(
                f"A service is running already on the state folder {settings.state}: {json.dumps(_told(file))}.",
                "Stop it, or set FORCEGATE_STATE and the ports to others.",
            )
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "url": address(settings), "grpc_port": settings.grpc_port}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _locked(file: TextIO) -> bool:
    for _ in range(5):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)  # one that only asks who the owner is holds it for a moment
        else:
            return True
    return False
