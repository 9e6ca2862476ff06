"""Forcegate: one trustworthy answer from any machine-learned force field, served by NVIDIA Triton."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = ["ForcegateCalculator", "__version__", "evaluate"]

if TYPE_CHECKING:
    from forcegate.calculator import ForcegateCalculator, evaluate


def __getattr__(name: str) -> object:
    # The execution environments import forcegate.contract and have no tritonclient, so the clients are imported on first use.
    if name in ("ForcegateCalculator", "evaluate"):
        from forcegate import calculator

        return getattr(calculator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
