"""Tiny MACE checkpoints of the real architectures, with random weights from a fixed seed."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr
from typing import Any

import numpy as np
import torch

with redirect_stdout(stderr):
    from mace.modules import PolarMACE, ScaleShiftMACE, interaction_classes
from e3nn import o3

from forcefields.mace import real_size

NUMBERS = [*range(1, 84), *range(89, 95)]
"""The elements of MPtrj and OMat24."""


def make(kind: str, path: Path) -> None:
    """Saves a whole model, as the package does.

    Args:
        kind: ``mp`` (MACE-MP-0), ``omat`` (0b and later, MPA-0, OMAT-0: density normalisation, Agnesi transform and ZBL repulsion),
            ``multihead`` (MH-1: the non-linear interaction, two heads), ``omol`` (OMOL-0: embeds charge and spin),
            ``polar`` (POLAR-1) or one of ``real_size.KINDS``, which are as large as the published ones.
    """
    torch.manual_seed(20240101)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with redirect_stdout(stderr):
            model = PolarMACE(**_polar()) if kind == "polar" else ScaleShiftMACE(**_settings(kind))
        # Written by path, torch would keep the file's name inside of it, and the bytes would depend on where it lies.
        with path.open("wb") as file:
            torch.save(model.float().eval(), file)
    finally:
        torch.set_default_dtype(before)


def _settings(kind: str) -> dict[str, Any]:
    if kind in real_size.KINDS:
        return real_size.settings(kind, NUMBERS) | {"atomic_energies": -np.random.default_rng(7).uniform(1.0, 6.0, len(NUMBERS))}
    first, other = {
        "mp": ("RealAgnosticResidualInteractionBlock",) * 2,
        "omat": ("RealAgnosticDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock"),
        "multihead": ("RealAgnosticResidualNonLinearInteractionBlock",) * 2,
        "omol": ("RealAgnosticResidualNonLinearInteractionBlock",) * 2,
    }[kind]
    heads = ["omat_pbe", "matpes_r2scan"] if kind == "multihead" else ["Default"]
    generator = np.random.default_rng(7)
    energies = -generator.uniform(1.0, 6.0, (len(heads), len(NUMBERS)))
    settings: dict[str, Any] = {
        "r_max": 4.5,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls_first": interaction_classes[first],
        "interaction_cls": interaction_classes[other],
        "num_interactions": 2,
        "num_elements": len(NUMBERS),
        "hidden_irreps": o3.Irreps("8x0e+8x1o"),
        "MLP_irreps": o3.Irreps("16x0e"),
        "atomic_energies": energies if len(heads) > 1 else energies[0],
        "avg_num_neighbors": 20.0,
        "atomic_numbers": NUMBERS,
        "correlation": 2,
        "gate": torch.nn.functional.silu,
        "radial_MLP": [16, 16],
        "radial_type": "bessel",
        # With a scale of 1 the forces are about 0.001 eV/A, and no test would see anything.
        "atomic_inter_scale": [10.0 if kind == "omol" else 100.0] * len(heads),
        "atomic_inter_shift": [0.0] * len(heads),
        "heads": heads,
    }
    if kind in ("omat", "multihead"):
        settings |= {"pair_repulsion": True, "distance_transform": "Agnesi"}
    if kind in ("multihead", "omol"):
        settings |= {"edge_irreps": o3.Irreps("8x0e+8x1o"), "use_agnostic_product": True, "apply_cutoff": False}
    if kind == "multihead":
        settings |= {"use_edge_irreps_first": True}
    if kind == "omol":
        embedded = {"type": "categorical", "per": "graph", "in_dim": 1, "emb_dim": 8}
        # Fewer than the real one's 101 and 201, so that the service takes some values that the embedding has no row for.
        settings["embedding_specs"] = {
            "total_spin": embedded | {"num_classes": 11, "offset": 0},
            "total_charge": embedded | {"num_classes": 21, "offset": 10},
        }
    return settings


def _polar() -> dict[str, Any]:
    """Charges, spins and dipoles that hear each other in one round; what the real ones have two of is here once."""
    return _settings("omol") | {
        "num_elements": 83,
        "atomic_numbers": NUMBERS[:83],
        "atomic_energies": _settings("omol")["atomic_energies"][:83],
        "embedding_specs": None,
        "kspace_cutoff_factor": 1.5,
        "atomic_multipoles_max_l": 1,
        "atomic_multipoles_smearing_width": 1.5,
        "field_feature_max_l": 1,
        "field_feature_widths": [1.5],
        "field_feature_norms": [20.0, 0.5],
        "num_recursion_steps": 1,
        "include_electrostatic_self_interaction": True,
        "add_local_electron_energy": True,
        "field_norm_factor": 1.0,
        "fixedpoint_update_config": {
            "type": "AgnosticEmbeddedOneBodyVariableUpdate",
            "potential_embedding_cls": "AgnosticChargeBiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "MLPNonLinearity",
        },
        "field_readout_config": {"type": "OneBodyMLPFieldReadout"},
    }
