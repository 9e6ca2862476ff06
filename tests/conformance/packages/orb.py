"""Orb's own ASE calculator, and what of the tiny variants is compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase import Atoms

from tests.conformance import cases

MOLECULES = ("near fragments", "two isolated atoms", *cases.CHARGED)

CASES = {
    "tiny-orb-conservative": (*cases.STRUCTURES, *cases.SYMMETRIC),
    # Two fragments 9000 A apart, which the package's float32 positions do not resolve, are looked at in test_orb.py.
    "tiny-orb-direct": (*(case for case in cases.STRUCTURES if case != "far fragments"), *cases.SYMMETRIC),
    "tiny-orb-omol": (*cases.FEW, *MOLECULES),
    "tiny-orb-v2": (*cases.FEW, *cases.SYMMETRIC),
}
SMALL = {"latent_dim": 16, "base_mlp_hidden_dim": 16, "base_mlp_depth": 1, "head_mlp_hidden_dim": 16, "head_mlp_depth": 1}


def calculator(variant: str, head: str, checkpoint: Path, precision: str = "float32-highest") -> Any:  # noqa: ARG001
    """``ORBCalculator``, as the package's own functions set it up, around a tiny checkpoint."""
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.calculator import ORBCalculator

    class Calculator(ORBCalculator):
        """Gives every structure a charge and a spin, without which OrbMol refuses it."""

        def calculate(self, atoms: Atoms, *arguments: Any) -> None:
            if self.expects_charge_and_spin:
                atoms = atoms.copy()
                atoms.info = {"charge": 0, "spin": 1} | atoms.info
            super().calculate(atoms, *arguments)

    build, neighbours, further = {
        "tiny-orb-conservative": (pretrained.orb_v3_conservative_architecture, 120, SMALL),
        "tiny-orb-direct": (pretrained.orb_v3_direct_architecture, 20, SMALL),
        "tiny-orb-omol": (
            pretrained.orb_v3_conservative_architecture,
            120,
            SMALL | {"has_charge_spin_cond": True, "has_stress": False},
        ),
        "tiny-orb-v2": (pretrained.orb_v2_architecture, 20, {}),
    }[variant]
    model = build(num_message_passing_steps=2, device="cpu", system_config=SystemConfig(6.0, neighbours), **further)
    return Calculator(pretrained.load_model(model, str(checkpoint), "cpu", precision=precision, compile=False), device="cpu")
