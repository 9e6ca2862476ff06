"""Is this file the checkpoint, and is this the package, that the catalogue vouches for? Standard library alone."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

from forcefields.catalogue import Family, Variant
from forcegate.errors import CheckpointMismatch, CheckpointMissing, EnvironmentBroken


def sha256(path: Path) -> str:
    """The hash of a file's bytes; of a folder, that of its files' names and hashes in order."""
    if path.is_dir():
        lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in sorted(path.rglob("*")) if file.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_checkpoint(path: Path, variant: Variant) -> None:
    """Makes sure that a checkpoint is the one that the catalogue vouches for.

    Raises:
        CheckpointMissing: there is no such file.
        CheckpointMismatch: its bytes differ; loading them could run foreign code.
    """
    shown = "/".join(path.parts[-3:])
    if not path.exists():
        raise CheckpointMissing(
            f"The checkpoint of {variant.name} is missing: {shown} (expected sha256 {variant.checkpoint.sha256}).",
            how_to_place(variant),
        )
    found = sha256(path)
    if found != variant.checkpoint.sha256:
        raise CheckpointMismatch(
            f"The checkpoint of {variant.name} has other bytes than the catalogue vouches for: {shown}, "
            f"expected sha256 {variant.checkpoint.sha256}, found {found}.",
            "Remove the file and run `make serve` again, which puts the right one in place.",
        )


def how_to_place(variant: Variant) -> str:
    """The hint that goes with a missing checkpoint."""
    if variant.checkpoint.source == "download":
        return f"Run `forcegate export {variant.name}`."
    if variant.checkpoint.source == "own":
        return f"Run `forcegate export --file PATH --as {variant.name}` with the same file again."
    return "Run `make serve` again: it puts the file in place."


def verify_package(family: Family) -> None:
    """Makes sure that the environment holds the pinned version of the family's package.

    Raises:
        EnvironmentBroken: it is missing or another version.
    """
    try:
        found = importlib.metadata.version(family.package)
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    if found != family.version:
        raise EnvironmentBroken(f"The {family.name} environment should hold {family.package} {family.version}; it is {found}.")
