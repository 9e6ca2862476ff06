"""Tiny Orb checkpoints, and some in real size: the package's own architectures, random weights with a fixed seed."""

from __future__ import annotations

from pathlib import Path

import torch

from forcefields import catalogue
from forcefields.orb.adapter import architecture

SPREAD = 15.0
"""eV per atom, of the random energies: with the package's 1.4 the forces of random weights are too small to test anything."""


def make(kind: str, path: Path) -> None:
    """Writes the weights of ``tiny-orb-<kind>``, or of ``random-orb-<kind>`` in real size, whose architecture is in family.toml."""
    families = catalogue.load()
    real_size = f"random-orb-{kind}" in families.variants
    variant = families.resolve(f"random-orb-{kind}" if real_size else f"tiny-orb-{kind}")
    torch.manual_seed(20250406)
    model = architecture(variant)
    if not variant.direct_forces and not real_size:
        model.heads["energy"].normalizer.bn.running_var.fill_(SPREAD**2)
    torch.save(model.state_dict(), path)
