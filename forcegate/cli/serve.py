"""``forcegate serve``: from a clean clone to a service that answers, and back to nothing on Ctrl-C.

The one place in this package that reaches into exporters and frontend, and only when the command runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forcegate.errors import SetupError

if TYPE_CHECKING:
    from forcefields.catalogue import Catalogue
    from frontend.settings import Settings

if find_spec("frontend") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")

START_SECONDS = 1800
"""Time that a first start may take, installing included."""


def serve(
    models: Annotated[str | None, typer.Option("--models", "-m", help="Models to load, separated by commas.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of the gateway.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of Triton's gRPC.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of Triton's metrics.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of Triton's HTTP.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of each model process.")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for logs and reports.")] = None,
    setup_only: Annotated[bool, typer.Option("--setup-only", help="Build what is needed and leave.")] = False,
) -> None:
    """Install what is missing, start Triton and the gateway, load the models, and serve until Ctrl-C."""
    # The supervisor forks while gRPC's threads run, which is safe as its children exec at once; gRPC would warn of each.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from frontend import settings as all_settings
    from frontend.supervisor import launch

    chosen = all_settings.load(
        models=models,
        port=port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        http_port=http_port,
        device=device,
        threads=threads,
        state=state,
    )
    raise typer.Exit(launch.run(chosen, _prepare, setup_only=setup_only))


def _prepare(settings: Settings, catalogue: Catalogue, names: list[str], say: Callable[[str], None]) -> Catalogue:
    from exporters.prepare import prepare

    return prepare(settings.root, settings.state, catalogue, names, say)


@contextmanager
def running_service(url: str | None = None) -> Iterator[str]:
    """The URL of a running service. One that is not up is started, and stopped again at the end.

    Raises:
        SetupError: it did not start; what it said is on the terminal.
    """
    from frontend import settings as all_settings

    settings = all_settings.load()
    url = (url or f"http://{settings.host}:{settings.port}").rstrip("/")
    if _ready(url):
        yield url
        return
    process = subprocess.Popen([sys.executable, "-m", "forcegate.cli", "serve"], env=os.environ, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SetupError("The service did not start.", "What it said is above.")
            time.sleep(0.2)
        yield url
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(settings.drain_seconds * 2 + 20)


def _ready(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/ready", timeout=2.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
