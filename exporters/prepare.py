"""Everything that has to be on disk before models can be loaded: environments, checkpoints, repository entries."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from exporters import checkpoints, environments, repository
from exporters.lock import locked
from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue, Variant
from forcefields.verification import sha256
from forcegate.errors import CheckpointMismatch, CheckpointMissing, SetupError

FOREIGN = "model_repository"
"""Folder in the state folder with the entries of families from elsewhere."""


def prepare(
    root: Path, state: Path, catalogue: Catalogue, names: list[str], say: environments.Say, embedded: bool = True
) -> Catalogue:
    """Builds what the named variants need. A checkpoint that is missing or differs is told and costs that variant alone.

    Nothing is downloaded but packages: fetching weights is ``forcegate export``'s.

    Args:
        embedded: whether the embedded tritonserver is needed too.

    Returns:
        The catalogue with the hashes that were recorded on the way.

    Raises:
        SetupError: an environment cannot be built.
    """
    variants = [catalogue.resolve(name) for name in names]
    requirements = {family.name: family.requirements for family in catalogue.families.values()}
    families = dict.fromkeys(variant.family for variant in variants)
    of_families = [environments.of_family(catalogue.families[name], requirements) for name in families]
    for environment in dict.fromkeys([*([environments.of_triton(root)] if embedded else []), *of_families]):
        environments.ensure(environment, root, say)
        environments.check(environment, root)
    adopt(catalogue, root, state)
    for variant in variants:
        if variant.checkpoint.source != "tiny":
            with locked(lock(state, variant.name), say, f"{variant.name}: another process is exporting it, waiting"):
                _place(catalogue, variant, root, state, say)
    with ThreadPoolExecutor(2) as pool:  # each starts a process that computes on one core
        list(pool.map(lambda family: _place_tiny(family, variants, root, state, say), families))
    # Read again: placing a checkpoint may have recorded its hash.
    catalogue = catalogues.load()
    write_repository(catalogue, root, state, say)
    return catalogue


def at_hand(root: Path, state: Path, catalogue: Catalogue, names: list[str]) -> list[str]:
    """Further variants that are in place, or can be put there without building an environment or fetching anything.

    In a container the repository of models cannot be written: there it is what the export job has put in place.
    """
    requirements = {family.name: family.requirements for family in catalogue.families.values()}
    built = {catalogue.resolve(name).family for name in names}
    for family in catalogue.families.values():
        environment = environments.of_family(family, requirements)
        if family.name not in built and environments.complete(environment, root):
            built.add(family.name)
    held = [
        variant
        for variant in catalogue.variants.values()
        if variant.family in built and variant.checkpoint.source in ("family", "package") and variant.name not in names
    ]
    homes = {variant.name: home(catalogue, variant, root, state) for variant in held}
    writable = {folder: not folder.exists() or os.access(folder, os.W_OK) for folder in set(homes.values())}
    return [
        variant.name
        for variant in held
        if writable[homes[variant.name]] or checkpoints.location(homes[variant.name], variant).exists()
    ]


def _place(catalogue: Catalogue, variant: Variant, root: Path, state: Path, say: environments.Say, made: bool = False) -> None:
    try:
        checkpoints.place(catalogue, variant, home(catalogue, variant, root, state), root / "environments", state, made=made)
    except (CheckpointMissing, CheckpointMismatch) as error:
        say(f"{variant.name}: {error}")


def _place_tiny(family: str, variants: list[Variant], root: Path, state: Path, say: environments.Say) -> None:
    """Makes those tiny checkpoints of a family that are not there yet, all in one process."""
    names = sorted({variant.name for variant in variants if variant.family == family and variant.checkpoint.source == "tiny"})
    with ExitStack() as locks:
        for name in names:  # in this order everywhere, so that no two processes wait for each other
            locks.enter_context(locked(lock(state, name), say, f"{name}: another process is exporting it, waiting"))
        # Read again: another process may have made some while this one waited.
        catalogue = catalogues.load()
        tiny = [catalogue.resolve(name) for name in names]
        missing = [variant for variant in tiny if checkpoints.to_be_made(variant, home(catalogue, variant, root, state))]
        if missing:
            repository = home(catalogue, missing[0], root, state)
            checkpoints.make(catalogue.families[family], missing, repository, root / "environments")
        for variant in tiny:
            _place(catalogue, variant, root, state, say, made=variant in missing)


def home(catalogue: Catalogue, variant: Variant, root: Path, state: Path) -> Path:
    """The repository that a variant belongs to: this project's, or the one in the state folder."""
    own = variant.name in {variant.name for variant in repository.own_variants(catalogue)}
    return root / "model_repository" if own else state / FOREIGN


def adopt(catalogue: Catalogue, root: Path, state: Path) -> None:
    """Moves checkpoints whose recorded hash has since been checked in; Triton takes no model from two repositories."""
    for variant in repository.own_variants(catalogue):
        stray = state / FOREIGN / variant.name
        if not stray.is_dir():
            continue
        source, target = checkpoints.location(state / FOREIGN, variant), checkpoints.location(root / "model_repository", variant)
        if source.exists() and not target.exists() and sha256(source) == variant.checkpoint.sha256:
            checkpoints.move(source, target)
        shutil.rmtree(stray, ignore_errors=True)


def lock(state: Path, name: str) -> Path:
    """The file that is locked while a variant is put in place."""
    return state / "locks" / name


def write_repository(catalogue: Catalogue, root: Path, state: Path, say: environments.Say) -> None:
    """Brings the configurations in both repositories up to date."""
    try:
        written = repository.write(catalogue, root / "model_repository")
        written += repository.write_foreign(catalogue, state / FOREIGN, root / "environments")
    except OSError as error:
        raise SetupError(
            f"The model repository is of another version, and cannot be written: {error.strerror}.",
            "Run the export job first (docs/deployment.md): it alone writes there.",
        ) from None
    for path in written:
        say(f"repository: wrote {path.relative_to(path.parents[2] if path.name == 'model.py' else path.parents[1])}")
