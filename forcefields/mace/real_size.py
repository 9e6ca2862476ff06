"""MACE in the sizes of published models, for weights that are random: time and memory do not depend on what the weights are."""

from __future__ import annotations

from typing import Any

import torch
from e3nn import o3
from mace.modules import interaction_classes

KINDS = ("mp-0-medium", "mp-0b2-large")


def settings(kind: str, numbers: list[int]) -> dict[str, Any]:
    """The arguments of ``ScaleShiftMACE``, but for the energies of the elements ``numbers``.

    ``mp-0-medium`` is MACE-MP-0a medium (arXiv:2401.00096): it has the 4,688,656 parameters that are published for it.
    ``mp-0b2-large`` has the interactions, Agnesi transform and pair repulsion of the training script that the authors publish for
    OMAT-0 (mace-foundations, mace_omat/mace-omat-medium.sh), which continues the line of 0b2, with L = 2 and the cutoff of 5 A that
    the catalogue has for 0b2; no script of 0b2 itself is published, so 128 channels and 8 Bessel functions are an assumption.
    """
    common: dict[str, Any] = {
        "num_polynomial_cutoff": 5,
        "max_ell": 3,
        "num_interactions": 2,
        "num_elements": len(numbers),
        "atomic_numbers": numbers,
        "MLP_irreps": o3.Irreps("16x0e"),
        "correlation": 3,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [64, 64, 64],
        "radial_type": "bessel",
        "atomic_inter_scale": [0.8],
        "atomic_inter_shift": [0.16],
        "heads": ["Default"],
    }
    if kind == "mp-0-medium":
        first = other = "RealAgnosticResidualInteractionBlock"
        chosen = {"r_max": 6.0, "num_bessel": 10, "hidden_irreps": o3.Irreps("128x0e+128x1o"), "avg_num_neighbors": 61.96}
    else:
        first, other = "RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"
        chosen = {
            "r_max": 5.0,
            "num_bessel": 8,
            "hidden_irreps": o3.Irreps("128x0e+128x1o+128x2e"),
            "avg_num_neighbors": 36.0,
            "pair_repulsion": True,
            "distance_transform": "Agnesi",
        }
    return common | chosen | {"interaction_cls_first": interaction_classes[first], "interaction_cls": interaction_classes[other]}
