"""Puts checkpoints where Triton's models look for them, after verifying their bytes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

from forcefields.catalogue import RECORD, Catalogue, Family, Variant
from forcefields.verification import sha256, verify_checkpoint
from forcegate.errors import CheckpointMismatch, CheckpointMissing, SetupError


def location(repository: Path, variant: Variant) -> Path:
    """Where a variant's checkpoint belongs."""
    return repository / variant.name / "1" / variant.checkpoint.file


def place(catalogue: Catalogue, variant: Variant, repository: Path, environments: Path, state: Path) -> Path:
    """Puts the checkpoint in place unless it is there already; whatever is there has to have the right bytes.

    The hash of a checkpoint that nobody publishes one for is recorded in the state folder the first time.

    Returns:
        The path of the verified file.

    Raises:
        CheckpointMissing: the source does not exist.
        CheckpointMismatch: the file in place, or the source, has other bytes. Neither is replaced in silence.
        SetupError: the file cannot be written.
    """
    target = location(repository, variant)
    family = catalogue.family_of(variant)
    if variant.checkpoint.source == "tiny" and not (target.exists() and variant.checkpoint.sha256):
        _record(variant, _make(family, variant, target, environments), state)
        return target
    if not target.exists():
        _copy(_verified_source(family, variant, environments), target)
    verify_checkpoint(target, variant)
    return target


def _verified_source(family: Family, variant: Variant, environments: Path) -> Path:
    source = _source(family, variant, environments)
    if not source.exists():
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
    return source


def _source(family: Family, variant: Variant, environments: Path) -> Path:
    checkpoint = variant.checkpoint
    if checkpoint.source == "family":
        return family.folder / checkpoint.path
    if checkpoint.source == "package":
        # Found on disk and not by import: importing the package takes seconds, and runs in another Python.
        environment = environments / family.environment
        found = sorted(environment.glob(f"lib/python3*/site-packages/{checkpoint.module}"))
        return (found[0] if found else environment) / checkpoint.path
    raise SetupError(f"{variant.name}: the checkpoint source {checkpoint.source!r} is not known.", "Correct family.toml.")


def _make(family: Family, variant: Variant, target: Path, environments: Path) -> Path:
    """Has the family's own environment make a tiny checkpoint of the real architecture."""
    partial = _partial(target)
    command = [str(environments / family.environment / "bin" / "python"), "-m", "forcefields.make_tiny"]
    result = subprocess.run(
        [*command, variant.name, str(partial)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode or not partial.exists():
        _discard(partial)
        raise SetupError(f"The tiny checkpoint {variant.name} could not be made: {result.stderr.strip()[-400:]}", "")
    _discard(target)
    os.replace(partial, target)
    return target


def _record(variant: Variant, path: Path, state: Path) -> None:
    record = state / RECORD
    with (state / f".{RECORD}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hashes = json.loads(record.read_text()) if record.is_file() else {}
        hashes[variant.name] = sha256(path)
        partial = _partial(record)
        partial.write_text(json.dumps(dict(sorted(hashes.items())), indent=2))
        os.replace(partial, record)


def _copy(source: Path, target: Path) -> None:
    """A copy that is either whole or not there."""
    partial = _partial(target)
    try:
        if source.is_dir():
            shutil.copytree(source, partial)
        else:
            shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        _discard(partial)
        raise SetupError(
            f"The checkpoint {target.name} cannot be written: {error.strerror}.", "Make room or check permissions."
        ) from None


def _partial(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{os.getpid()}.{target.name}")


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
