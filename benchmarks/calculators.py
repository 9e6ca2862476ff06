"""The package's own ASE calculator of every family, as its documentation sets it up, around the checkpoint that is served.

Runs in the family's execution environment. What the packages would compile on their first call is not compiled, as it is not in the
service: it takes minutes on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from forcefields.catalogue import Variant


def calculator(variant: Variant, checkpoint: Path) -> Any:
    """An ASE calculator that gives energy, forces and stress on the CPU, or on CUDA where torch sees one.

    Raises:
        ValueError: the family is not one of those below.
    """
    if variant.family not in MADE:
        raise ValueError(f"{variant.family} has no ASE calculator of its own")
    return MADE[variant.family](variant, checkpoint)


def gives_stress(variant: Variant) -> bool:
    """Whether the package's calculator gives a stress; those around eSEN models of molecules raise."""
    return (
        variant.gate.skip.get("stress", "") != "the model has none" and "omol" not in variant.name and variant.name != "tiny-esen"
    )


def _lennard_jones(variant: Variant, checkpoint: Path) -> Any:  # noqa: ARG001
    from ase.calculators.lj import LennardJones

    return LennardJones(epsilon=0.0103, sigma=3.4, rc=variant.cutoff)


def _sevennet(variant: Variant, checkpoint: Path) -> Any:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator(str(checkpoint), device=device(), **({"modal": variant.default_head} if variant.heads else {}))


def _chgnet(variant: Variant, checkpoint: Path) -> Any:  # noqa: ARG001
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    loaded = CHGNet.load(model_name=variant.name.removeprefix("chgnet-"), use_device=device(), verbose=False)
    return CHGNetCalculator(loaded, use_device=device(), on_isolated_atoms="ignore")


def _mace(variant: Variant, checkpoint: Path) -> Any:
    from mace.calculators import MACECalculator

    chosen = {"head": variant.default_head} if variant.heads else {}
    return MACECalculator(model_paths=str(checkpoint), device=device(), default_dtype=variant.dtype, **chosen)


def _orb(variant: Variant, checkpoint: Path) -> Any:
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.calculator import ORBCalculator

    from forcefields.orb.adapter import architecture

    model = architecture(variant)
    loaded = pretrained.load_model(model, str(checkpoint), device(), precision="float32-highest", compile=False)
    return ORBCalculator(loaded, device=device())


def _fairchem(variant: Variant, checkpoint: Path) -> Any:
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit

    unit = load_predict_unit(checkpoint, inference_settings="batch", device=device())
    return FAIRChemCalculator(unit, task_name=variant.default_head or "omol")


def _matgl(variant: Variant, checkpoint: Path) -> Any:  # noqa: ARG001
    from matgl import load_model
    from matgl.ext.ase import PESCalculator

    return PESCalculator(load_model(checkpoint).eval(), stress_unit="eV/A3", use_voigt=True)


def _mattersim(variant: Variant, checkpoint: Path) -> Any:  # noqa: ARG001
    from mattersim.forcefield import MatterSimCalculator

    return MatterSimCalculator.from_checkpoint(str(checkpoint), device=device(), load_training_state=False)


def _grace(variant: Variant, checkpoint: Path) -> Any:  # noqa: ARG001
    from tensorpotential.calculator import TPCalculator

    return TPCalculator(str(checkpoint), enable_uq_if_available=False)


def device() -> str:
    """``cuda`` where torch sees a GPU, else ``cpu``; an environment without torch computes on the CPU."""
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


MADE = {
    "lennard_jones": _lennard_jones,
    "sevennet": _sevennet,
    "chgnet": _chgnet,
    "mace": _mace,
    "orb": _orb,
    "fairchem": _fairchem,
    "matgl": _matgl,
    "mattersim": _mattersim,
    "grace": _grace,
}
