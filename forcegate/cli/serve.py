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
from urllib.parse import urlsplit

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
    from exporters.prepare import at_hand, prepare

    if settings.scheduler == "on":
        names = [*names, *at_hand(settings.root, settings.state, catalogue, names)]
    return prepare(settings.root, settings.state, catalogue, names, say, embedded=not settings.tritonserver)


@contextmanager
def running_service(url: str | None = None) -> Iterator[str]:
    """The URL of a service that is ready. One that is starting is waited for; where there is none, it is started and stopped again.

    Args:
        url: of the service that is meant; by default the settings tell.

    Raises:
        SetupError: it did not start, and what it said is on the terminal; or ``url`` is not where the settings would start one.
    """
    from frontend import settings as all_settings
    from frontend.supervisor import launch

    settings = all_settings.load()
    own = launch.address(settings)
    url = (url or own).rstrip("/")
    if _ready(url):
        yield url
        return
    if not _same(url, own):
        raise SetupError(f"No service is ready at {url}.", f"Start it there, or leave --url out to use one at {own}.")
    with _started(settings) as url:
        yield url


@contextmanager
def _started(settings: Settings) -> Iterator[str]:
    """Waits for the service of these settings, starting it unless another process has the state folder: that one is starting it."""
    from forcegate.cli.terminal import messages
    from frontend.supervisor import launch

    url = launch.address(settings)
    process: subprocess.Popen[bytes] | None = None
    waiting_for: int | None = None
    deadline = time.monotonic() + START_SECONDS
    try:
        while not _ready(url):
            owner = launch.owner(settings)
            if time.monotonic() > deadline or (process is not None and process.poll() is not None and owner is None):
                raise SetupError("The service did not start.", "What it said is above.")
            if process is None and owner is None:
                url, process = launch.address(settings), _spawn()
            elif owner is not None and (process is None or process.poll() is not None):
                # Its ports may have been given to it as options, which the settings here do not know.
                url = owner.get("url", url)
                if waiting_for != owner.get("pid", waiting_for):
                    waiting_for = owner["pid"]
                    messages().print(f"A service is starting already (process {waiting_for}); waiting until it is ready.")
            time.sleep(0.2)
        yield url
    finally:
        if process is not None:
            _stop(process, settings.drain_seconds * 2 + 20)


def _spawn() -> subprocess.Popen[bytes]:
    """The service in a session of its own, which Ctrl-C does not reach; it ends with this process, however that ends."""
    from frontend.supervisor.process import die_with

    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", "forcegate.cli", "serve"], start_new_session=True, preexec_fn=lambda: die_with(parent)
    )


def _stop(process: subprocess.Popen[bytes], patience: float) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _same(one: str, other: str) -> bool:
    return urlsplit(one.replace("//localhost", "//127.0.0.1")).netloc == urlsplit(other).netloc


def _ready(url: str) -> bool:
    import httpx

    try:
        return httpx.get(f"{url}/ready", timeout=2.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
