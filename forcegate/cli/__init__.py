"""The command ``forcegate``.

Exit codes: 0 all is well; 1 a structure or a file failed; 2 the command cannot be understood; 3 the service or the model is not
available. Modules of this package import what is slow (ASE, gRPC) inside their commands, so that ``--help`` is quick.
"""

from __future__ import annotations

from typing import Annotated

import typer

from forcegate import __version__
from forcegate.cli.bulk_modulus import bulk_modulus
from forcegate.cli.compare import compare
from forcegate.cli.demo import demo
from forcegate.cli.devices import devices
from forcegate.cli.elasticity import elasticity
from forcegate.cli.evaluate import evaluate
from forcegate.cli.interaction import interaction
from forcegate.cli.md import md
from forcegate.cli.models import models
from forcegate.cli.phonons import phonons
from forcegate.cli.relax import relax
from forcegate.cli.tasks import tasks
from forcegate.cli.terminal import exit_code, report
from forcegate.errors import ForcegateError


def main() -> None:
    """The console script: every typed error becomes one sentence on stderr and an exit code."""
    try:
        application()()
    except ForcegateError as error:
        report(error)
        raise SystemExit(exit_code(error)) from None


def application() -> typer.Typer:
    """All commands; those of the service itself only where it is installed."""
    app = typer.Typer(
        help="Machine-learned force fields, served by NVIDIA Triton.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    _add_serve(app)
    for command in (models, devices, evaluate, relax, compare, demo):
        app.command()(command)
    for calculation in (md, bulk_modulus, phonons, elasticity, interaction):
        app.command()(calculation)
    app.add_typer(tasks, name="tasks")
    return app


def _add_serve(app: typer.Typer) -> None:
    try:
        from forcegate.cli.deploy import deploy
        from forcegate.cli.environments import env
        from forcegate.cli.export import export
        from forcegate.cli.gateway import gateway
        from forcegate.cli.keys import keys
        from forcegate.cli.placement import placement
        from forcegate.cli.serve import serve
        from forcegate.cli.worker import worker
    except ImportError:  # the extra `serve` is not installed: this machine is a client alone
        return
    app.command()(serve)
    app.command()(gateway)
    app.command()(worker)
    app.command()(export)
    app.add_typer(env, name="env")
    app.add_typer(deploy, name="deploy")
    app.add_typer(keys, name="keys")
    app.add_typer(placement, name="placement")


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
