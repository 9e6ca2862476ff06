"""From a variant's name to a loaded force field whose checkpoint, package and elements are what the catalogue says."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from forcefields.base import ForceField
from forcefields.catalogue import HERE, Catalogue, Family, Variant
from forcefields.runtime import arithmetic, compilation
from forcefields.runtime.physics import Limits
from forcefields.runtime.settings import ModelSettings
from forcefields.verification import verify_checkpoint, verify_package
from forcegate.errors import CheckpointMismatch, EnvironmentBroken


def module_of(family: Family, name: str) -> ModuleType:
    """A module of the family's folder, ``adapter`` or ``tiny``; a family outside this repository is imported from its path.

    Raises:
        EnvironmentBroken: the family has no such file.
    """
    if family.folder.parent == HERE:
        return importlib.import_module(f"forcefields.{family.name}.{name}")
    full_name = f"forcegate_family_{family.name}_{name}"
    spec = importlib.util.spec_from_file_location(full_name, family.folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise EnvironmentBroken(f"The family {family.name} has no {name}.py.", "")
    module = sys.modules[full_name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapter(family: Family) -> type[ForceField]:
    """The family's adapter class."""
    found: type[ForceField] = module_of(family, "adapter").ADAPTER
    return found


def load(catalogue: Catalogue, variant: Variant, checkpoint: Path, device: str) -> ForceField:
    """Loads a checkpoint after verifying its bytes and the package, and compares it with the catalogue.

    Raises:
        CheckpointMissing, CheckpointMismatch, EnvironmentBroken: as the two checks above; the last also where cuEquivariance or
            torch.compile are asked for and are not to be had here.
    """
    family = catalogue.family_of(variant)
    verify_checkpoint(checkpoint, variant)
    verify_package(family)
    found = adapter(family)
    settings = ModelSettings.from_environment()
    how = arithmetic.chosen(settings, family, found, device)
    how.apply()
    loaded = (found.load_with_cuequivariance if how.cuequivariance else found.load)(checkpoint, variant, device)
    how.apply()
    if not set(variant.elements) <= set(loaded.elements) or abs(loaded.cutoff - variant.cutoff) > 1e-6:
        raise CheckpointMismatch(
            f"The catalogue and the checkpoint of {variant.name} disagree: cutoff {variant.cutoff} and {loaded.cutoff} A, "
            f"{len(variant.elements)} and {len(loaded.elements)} elements.",
            "Correct family.toml.",
        )
    if how.compile and loaded.takes_compile:  # one checkpoint of a family may be of a class of its own
        compilation.compiled(loaded, variant, settings.state)
    return loaded


def limits(variant: Variant, max_atoms: int, memory_gb: float) -> Limits:
    """The largest structure that fits: ``memory_gb``, or half of the memory that is free now, over the cost of an edge."""
    budget = memory_gb * 1e9 if memory_gb else 0.5 * _free_memory()
    return Limits(atoms=max_atoms, edges=max(10_000, int(budget / variant.packing.bytes_per_edge)))


def _free_memory() -> float:
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2
