"""The kinds that are one calculation for one structure and one model."""

from __future__ import annotations

from frontend.tasks.kinds import (
    bulk_modulus,
    elasticity,
    heat_capacity,
    interaction_energy,
    optimization,
    qmof_energy,
    single_point,
    stability,
)
from frontend.tasks.kinds.kind import Calculation

CALCULATIONS: dict[str, Calculation] = {
    module.KIND.name: module.KIND
    for module in (
        single_point,
        optimization,
        stability,
        bulk_modulus,
        heat_capacity,
        elasticity,
        interaction_energy,
        qmof_energy,
    )
}
"""By name."""
