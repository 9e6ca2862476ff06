"""Puts checkpoints where Triton's models look for them, after verifying their bytes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from exporters import family_python, records
from exporters.sources import Staged
from forcefields.catalogue import EXPORTS, RECORD, Catalogue, Family, Variant
from forcefields.verification import how_to_place, sha256, verify_checkpoint
from forcegate.errors import CheckpointMismatch, CheckpointMissing, SetupError

Bring = Callable[[Variant, Path], Staged]
"""Brings the checkpoint of a variant, which belongs at that path."""


def location(repository: Path, variant: Variant) -> Path:
    """Where a variant's checkpoint belongs."""
    return repository / variant.name / "1" / variant.checkpoint.file


def place(
    catalogue: Catalogue,
    variant: Variant,
    repository: Path,
    environments: Path,
    state: Path,
    bring: Bring | None = None,
    made: bool = False,
) -> str:
    """Puts the checkpoint in place unless it is there already; whatever is there has to have the right bytes.

    The hash of a checkpoint that nobody publishes one for is recorded in the state folder the first time.

    Args:
        bring: fetches what no package holds. The service gives none: it never downloads by itself.
        made: the checkpoint has just been made by ``make``, and its hash is to be recorded.

    Returns:
        Where the checkpoint came from, or an empty string when it was in place.

    Raises:
        CheckpointMissing: the source does not exist, or has to be fetched and nobody may.
        CheckpointMismatch: the file in place, or the source, has other bytes, or those of another model. Neither is replaced in
            silence.
        SetupError: the file cannot be fetched or written.
    """
    target = location(repository, variant)
    known = variant.checkpoint.sha256
    came_from = ""
    if not made and to_be_made(variant, repository):
        make(catalogue.family_of(variant), [variant], repository, environments)
        made = True
    if made:
        known = ""  # of the file that was there before: the same weights are not always the same bytes
        came_from = f"made by tiny.py of {variant.family}"
    elif not target.exists():
        staged = _staged(catalogue.family_of(variant), variant, target, environments, bring)
        _verify_source(variant, staged)
        _put(staged, target)
        came_from = staged.told
    if known:
        verify_checkpoint(target, variant)
        return came_from
    try:
        _record(catalogue, variant, target, state)
    except CheckpointMismatch:
        if came_from:
            _discard(target)
        raise
    return came_from


def to_be_made(variant: Variant, repository: Path) -> bool:
    """Whether ``variant`` is a tiny one whose checkpoint is not there, or is there without its hash."""
    return variant.checkpoint.source == "tiny" and not (location(repository, variant).exists() and variant.checkpoint.sha256)


def make(family: Family, variants: Sequence[Variant], repository: Path, environments: Path) -> None:
    """Has the family's own environment make tiny checkpoints of the real architectures, all in one process.

    Raises:
        SetupError: they could not be made; none of them is there then.
    """
    targets = [location(repository, variant) for variant in variants]
    partials = [_partial(target) for target in targets]
    python = environments / family.environment / "bin" / "python"
    pairs = [argument for variant, partial in zip(variants, partials, strict=True) for argument in (variant.name, str(partial))]
    result = family_python.run(python, "forcefields.make_tiny", *pairs)
    if result.returncode or not all(partial.exists() for partial in partials):
        for partial in partials:
            _discard(partial)
        names = ", ".join(variant.name for variant in variants)
        raise SetupError(f"The tiny checkpoints could not be made ({names}): {result.stderr.strip()[-400:]}", "")
    for partial, target in zip(partials, targets, strict=True):
        _discard(target)
        os.replace(partial, target)


def refuse_a_second_name(catalogue: Catalogue, name: str, digest: str, state: Path) -> None:
    """Two names never serve the same bytes, unless one is declared as an alias: whoever compares them would compare nothing.

    It holds until the next export records something: whoever records ``digest`` asks while ``records.held`` has RECORD.

    Raises:
        CheckpointMismatch: these bytes have another name already.
    """
    known = {variant.name: variant.checkpoint.sha256 for variant in catalogue.variants.values()} | records.read(state / RECORD)
    known |= {other: export["variant"]["checkpoint"]["sha256"] for other, export in records.read(state / EXPORTS).items()}
    others = [other for other, its_digest in known.items() if its_digest == digest and other != name]
    if others:
        raise CheckpointMismatch(
            f"The checkpoint for {name} has the bytes of {others[0]} (sha256 {digest}): one model would have two names.",
            f"Use {others[0]}. If the file was given by mistake, give the right one.",
        )


def forget(variant: Variant, repository: Path, state: Path) -> None:
    """Takes back a checkpoint that has just been recorded for the first time and turned out to be unreadable."""
    _discard(location(repository, variant))
    records.update(state / RECORD, lambda hashes: hashes.pop(variant.name, None))


def copy(source: Path, target: Path) -> None:
    """A copy that is either whole or not there; it takes the place of what an interrupted run has left.

    Raises:
        SetupError: no room, or no permission.
    """
    _discard(target)
    _put(Staged(source, ours=False, told=""), target)


def move(source: Path, target: Path) -> None:
    """The same, without leaving the source behind."""
    _put(Staged(source, ours=True, told=""), target)


def _staged(family: Family, variant: Variant, target: Path, environments: Path, bring: Bring | None) -> Staged:
    checkpoint = variant.checkpoint
    if checkpoint.source == "family":
        return Staged(family.folder / checkpoint.path, ours=False, told=f"{family.name}/{checkpoint.path} of this repository")
    if checkpoint.source == "package":
        # Found on disk and not by import: importing the package takes seconds, and runs in another Python.
        environment = environments / family.environment
        found = sorted(environment.glob(f"lib/python3*/site-packages/{checkpoint.module}"))
        path = (found[0] if found else environment) / checkpoint.path
        return Staged(path, ours=False, told=f"{checkpoint.path} of the package {family.package} {family.version}")
    if checkpoint.source == "download" and bring is not None:
        return bring(variant, target)
    if checkpoint.source in ("download", "own"):
        raise CheckpointMissing(
            f"The checkpoint of {variant.name} is not on this machine: {target} "
            f"({f'sha256 {checkpoint.sha256}' if checkpoint.sha256 else 'its hash is recorded when it is first exported'}).",
            how_to_place(variant),
        )
    raise SetupError(f"{variant.name}: the checkpoint source {checkpoint.source!r} is not known.", "Correct family.toml.")


def _verify_source(variant: Variant, staged: Staged) -> None:
    checkpoint = variant.checkpoint
    if not staged.path.exists():
        raise CheckpointMissing(
            f"The source of {variant.name}'s checkpoint is missing: {checkpoint.path} "
            f"of {checkpoint.module or variant.family} (sha256 {checkpoint.sha256}).",
            "Run `forcegate env build --again` for its environment.",
        )
    if checkpoint.sha256 and (found := sha256(staged.path)) != checkpoint.sha256:
        if staged.ours:
            _discard(staged.path)
        raise CheckpointMismatch(
            f"{staged.path.name} for {variant.name} should have sha256 {checkpoint.sha256}, it has {found}.",
            f"It came from {staged.told}, which is not what the catalogue was made for. Nothing of it was kept."
            if staged.ours
            else f"The installed package is not the pinned one: run `forcegate env build --again {variant.family}`.",
        )


def _record(catalogue: Catalogue, variant: Variant, path: Path, state: Path) -> None:
    """Enters the hash of a checkpoint, unless its bytes have another name: no other export can give them one meanwhile."""
    found = sha256(path)
    with records.held(state / RECORD) as hashes:
        refuse_a_second_name(catalogue, variant.name, found, state)
        hashes[variant.name] = found


def _put(staged: Staged, target: Path) -> None:
    partial = _partial(target)
    try:
        if not (staged.ours and _moved(staged.path, target)):
            if staged.path.is_dir():
                shutil.copytree(staged.path, partial)
            else:
                shutil.copyfile(staged.path, partial)
            os.replace(partial, target)
    except (OSError, shutil.Error) as error:
        _discard(partial)
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:200]
        raise SetupError(f"The checkpoint {target.name} cannot be written: {why}.", "Make room or check permissions.") from None


def _moved(source: Path, target: Path) -> bool:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _partial(target: Path) -> Path:
    """A name beside ``target`` for what is being written; what an interrupted run left there is removed."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in target.parent.glob(f".*.{target.name}"):
            if not Path(f"/proc/{path.name.split('.')[1]}").exists():
                _discard(path)
    except OSError as error:
        raise SetupError(f"{target.parent} cannot be written: {error.strerror}.", "Make room or check permissions.") from None
    return target.with_name(f".{os.getpid()}.{target.name}")


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
