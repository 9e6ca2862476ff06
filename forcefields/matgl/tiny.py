"""Tiny MatGL potentials, and one in real size: the package's own architectures, random weights with a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from forcefields.matgl.adapter import _elsewhere

with _elsewhere():
    from matgl.apps.pes import Potential
    from matgl.config import DEFAULT_ELEMENTS
    from matgl.models import CHGNet, M3GNet, TensorNet

SPREAD = {"m3gnet": 500.0, "tensornet": 150.0, "chgnet": 50.0, "tensornet-matpes": 10.0}
"""eV: what the output of random weights is multiplied with, for forces that a wrong sign would be seen in."""


def make(kind: str, path: Path) -> None:
    """Writes the folder of ``tiny-matgl-<kind>``, or of a TensorNet as large as those of MatPES: 0.84 million parameters."""
    torch.manual_seed(20250406)
    refs = -5.0 - 3.0 * torch.rand(len(DEFAULT_ELEMENTS))
    Potential(_model(kind), data_std=SPREAD[kind], element_refs=refs, calc_magmom=kind == "chgnet").save(path)


def _model(kind: str) -> Any:
    if kind == "m3gnet":
        small = {"units": 16, "dim_node_embedding": 16, "dim_edge_embedding": 16}
        return M3GNet(DEFAULT_ELEMENTS, nblocks=2, is_intensive=False, use_smooth=True, **small)
    if kind in ("tensornet", "tensornet-matpes"):
        units = {"units": 128} if kind == "tensornet-matpes" else {"units": 16, "num_rbf": 16}
        return TensorNet(DEFAULT_ELEMENTS, nblocks=2, is_intensive=False, rbf_type="SphericalBessel", use_smooth=True, **units)
    small = {f"dim_{part}_embedding": 16 for part in ("atom", "bond", "angle")}
    hidden = {
        "atom_conv_hidden_dims": (16,),
        "bond_conv_hidden_dims": (16,),
        "bond_update_hidden_dims": (16,),
        "final_hidden_dims": (16, 16),
    }
    return CHGNet(DEFAULT_ELEMENTS, num_blocks=3, **small, **hidden)
