"""Calculations on one structure with any ASE calculator: each a function of (calculator, structure, parameters, progress).

A calculator may be a served model (``forcegate.ForcegateCalculator``), any other of ASE's, or a ``Forces``
(``forcegate.calculations.forces``), which evaluates many structures at once. docs/calculations.md says what each one computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "bulk_modulus",
    "elasticity",
    "heat_capacity",
    "interaction_energy",
    "optimization",
    "qmof_energy",
    "stability",
]

if TYPE_CHECKING:
    from forcegate.calculations.bulk_modulus import bulk_modulus
    from forcegate.calculations.elasticity import elasticity
    from forcegate.calculations.heat_capacity import heat_capacity
    from forcegate.calculations.interaction_energy import interaction_energy
    from forcegate.calculations.optimization import optimization
    from forcegate.calculations.qmof_energy import qmof_energy
    from forcegate.calculations.stability import stability
