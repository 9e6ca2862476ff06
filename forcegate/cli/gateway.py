"""``forcegate gateway``: REST alone, in front of a Triton that runs elsewhere."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

if find_spec("frontend") is None or find_spec("pydantic_settings") is None:
    raise ImportError("the extra `serve` is not installed")


def gateway(
    port: Annotated[int | None, typer.Option(help="Port of the gateway.")] = None,
    triton_host: Annotated[str | None, typer.Option(help="Host where Triton runs.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="Port of Triton's gRPC.")] = None,
) -> None:
    """Answer REST until Ctrl-C, with the models of a Triton that `forcegate serve` keeps elsewhere."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from frontend import settings as all_settings
    from frontend.supervisor.gateways import child_environment

    settings = all_settings.load(port=port, triton_host=triton_host, grpc_port=grpc_port)
    if settings.gateways > 1:
        from frontend.supervisor import apart

        raise typer.Exit(apart.run(settings))
    # In place of this process, so that its signals, its log and its end are the gateway's.
    environment = child_environment(settings) | {"FORCEGATE_GATEWAYS": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "frontend.gateway"], environment)
