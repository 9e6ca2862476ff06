"""Tiny Orb checkpoints: the package's own architectures with few and narrow layers, random weights with a fixed seed."""

from __future__ import annotations

from pathlib import Path

import torch

from forcefields import catalogue
from forcefields.orb.adapter import architecture

SPREAD = 15.0
"""eV per atom, of the random energies: with the package's 1.4 the forces of random weights are too small to test anything."""


def make(kind: str, path: Path) -> None:
    """Writes the weights of ``tiny-orb-<kind>``, whose architecture is in family.toml."""
    variant = catalogue.load().resolve(f"tiny-orb-{kind}")
    torch.manual_seed(20250406)
    model = architecture(variant)
    if not variant.direct_forces:
        model.heads["energy"].normalizer.bn.running_var.fill_(SPREAD**2)
    torch.save(model.state_dict(), path)
