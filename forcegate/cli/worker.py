"""``forcegate worker``: carries out tasks, on any machine that reaches their database and Triton."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

if find_spec("frontend") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")


def worker(
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-c", help="Tasks at once.")] = None,
    triton_host: Annotated[str | None, typer.Option(help="Host where Triton runs.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of Triton's gRPC.")] = None,
    database_url: Annotated[str | None, typer.Option(help="Database of the tasks; SQLite in the state folder without.")] = None,
) -> None:
    """Carry out tasks until Ctrl-C; what is running then goes back into the queue with its last state."""
    from frontend import settings as all_settings
    from frontend.supervisor.service import child_environment

    settings = all_settings.load(
        task_concurrency=concurrency, triton_host=triton_host, grpc_port=grpc_port, database_url=database_url
    )
    # In place of this process, so that its signals and its end are the worker's.
    command = [sys.executable, "-m", "frontend.tasks.worker"]
    os.execve(sys.executable, command, child_environment(settings))
