"""Forcegate: one trustworthy answer from any machine-learned force field, served by NVIDIA Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "ForcegateCalculator", "__version__", "evaluate", "iterate"]

if TYPE_CHECKING:
    from forcegate.calculator import ForcegateCalculator
    from forcegate.client import AsyncClient, Client
    from forcegate.evaluation import evaluate, iterate

_HOMES = {
    "AsyncClient": "client",
    "Client": "client",
    "ForcegateCalculator": "calculator",
    "evaluate": "evaluation",
    "iterate": "evaluation",
}


def __getattr__(name: str) -> object:
    # The execution environments import forcegate.contract and have no tritonclient, so the clients are imported on first use.
    if (home := _HOMES.get(name)) is not None:
        from importlib import import_module

        return getattr(import_module(f"forcegate.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
