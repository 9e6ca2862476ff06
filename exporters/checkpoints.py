"""Puts checkpoints where Triton's models look for them, after verifying their bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from forcefields.catalogue import Catalogue, Variant
from forcefields.verification import sha256, verify_checkpoint
from forcegate.errors import CheckpointMismatch, CheckpointMissing, SetupError


def location(repository: Path, variant: Variant) -> Path:
    """Where a variant's checkpoint belongs."""
    return repository / variant.name / "1" / variant.checkpoint.file


def place(catalogue: Catalogue, variant: Variant, repository: Path, environments: Path) -> Path:
    """Puts the checkpoint in place unless a file is there already; whatever is there has to have the right bytes.

    Returns:
        The path of the verified file.

    Raises:
        CheckpointMissing: the source does not exist.
        CheckpointMismatch: the file in place, or the source, has other bytes. Neither is replaced in silence.
        SetupError: the file cannot be written.
    """
    target = location(repository, variant)
    if not target.exists():
        source = _source(catalogue, variant, environments)
        if not source.is_file():
            raise CheckpointMissing(
                f"The source of {variant.name}'s checkpoint is missing: {variant.checkpoint.path} "
                f"of {variant.checkpoint.module or variant.family} (sha256 {variant.checkpoint.sha256}).",
                "Remove the family's environment and run `make serve` again.",
            )
        if (found := sha256(source)) != variant.checkpoint.sha256:
            raise CheckpointMismatch(
                f"{source.name} for {variant.name} should have sha256 {variant.checkpoint.sha256}, it has {found}.",
                "The installed package is not the pinned one: remove the family's environment and run `make serve` again.",
            )
        _copy(source, target)
    verify_checkpoint(target, variant)
    return target


def _source(catalogue: Catalogue, variant: Variant, environments: Path) -> Path:
    checkpoint = variant.checkpoint
    if checkpoint.source == "family":
        return catalogue.family_of(variant).folder / checkpoint.path
    if checkpoint.source == "package":
        environment = catalogue.family_of(variant).environment
        # Found on disk and not by import: importing the package takes seconds, and runs in another Python.
        found = sorted((environments / environment).glob(f"lib/python3*/site-packages/{checkpoint.module}"))
        return (found[0] if found else environments / environment) / checkpoint.path
    raise SetupError(f"{variant.name}: the checkpoint source {checkpoint.source!r} is not known.", "Correct family.toml.")


def _copy(source: Path, target: Path) -> None:
    """A copy that is either whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise SetupError(
            f"The checkpoint {target.name} cannot be written: {error.strerror}.", "Make room or check permissions."
        ) from None
