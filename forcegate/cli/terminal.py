"""What the commands share: options, units of the tables, and how an error looks in a terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from forcegate.errors import ForcegateError, InvalidRequest, SetupError

FAILED, USAGE, UNAVAILABLE = 1, 2, 3
"""Exit codes; see ``forcegate.cli``."""

GPA = 160.2176634
"""GPa in 1 eV/A^3 (CODATA 2018, exact)."""

Url = Annotated[
    str, typer.Option("--url", envvar="FORCEGATE_URL", help="Address of the gateway (REST).", show_default="http://127.0.0.1:8000")
]
Grpc = Annotated[
    str, typer.Option("--grpc", envvar="FORCEGATE_GRPC", help="Address of Triton's gRPC, host:port.", show_default="127.0.0.1:8001")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Models = Annotated[list[str], typer.Option("--model", "-m", help="Name of a model; repeat it for several.")]


def console() -> Console:
    """Where results go."""
    return Console(highlight=False)


def wide() -> Console:
    """Where tables go: as wide as the terminal, and 132 columns in a file or a pipe, where rich would fold them into 80."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 132)


def messages() -> Console:
    """Where messages and progress go: stderr, so that results can be piped."""
    return Console(stderr=True, highlight=False)


def report(error: ForcegateError, about: str = "") -> None:
    """The error in one line, with what to do next."""
    text = " ".join((f"{about}: {error}" if about else str(error)).split())
    request = f" [dim](request {error.request_id})[/]" if error.request_id else ""
    messages().print(f"[bold red]Error:[/] {escape(text)}{request}", soft_wrap=True)


def exit_code(error: ForcegateError) -> int:
    """The exit code of a command that ended with ``error``."""
    if isinstance(error, InvalidRequest):
        return USAGE
    return UNAVAILABLE if isinstance(error, SetupError) or error.status in (401, 403, 404, 409, 429, 503, 504) else FAILED
