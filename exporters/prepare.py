"""Everything that has to be on disk before models can be loaded: environments, checkpoints, repository entries."""

from __future__ import annotations

from pathlib import Path

from exporters import checkpoints, environments, repository
from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue
from forcegate.errors import CheckpointMismatch, CheckpointMissing

FOREIGN = "model_repository"
"""Folder in the state folder with the entries of families from elsewhere."""


def prepare(root: Path, state: Path, catalogue: Catalogue, names: list[str], say: environments.Say) -> Catalogue:
    """Builds what the named variants need. A checkpoint that is missing or differs is told and costs that variant alone.

    Returns:
        The catalogue with the hashes that were recorded on the way.

    Raises:
        SetupError: an environment cannot be built.
    """
    variants = [catalogue.resolve(name) for name in names]
    requirements = {family.name: family.requirements for family in catalogue.families.values()}
    families = dict.fromkeys(variant.family for variant in variants)
    of_families = [environments.of_family(catalogue.families[name], requirements) for name in families]
    for environment in dict.fromkeys([environments.of_triton(root), *of_families]):
        environments.ensure(environment, root, say)
        environments.check(environment, root)
    own, foreign = root / "model_repository", state / FOREIGN
    at_home = {variant.name for variant in repository.own_variants(catalogue)}
    for variant in variants:
        target = own if variant.name in at_home else foreign
        try:
            checkpoints.place(catalogue, variant, target, root / "environments", state)
        except (CheckpointMissing, CheckpointMismatch) as error:
            say(f"{variant.name}: {error}")
    # Read again: placing a checkpoint may have recorded its hash.
    catalogue = catalogues.load()
    for path in repository.write(catalogue, own) + repository.write_foreign(catalogue, foreign, root / "environments"):
        say(f"repository: wrote {path.relative_to(path.parents[2] if path.name == 'model.py' else path.parents[1])}")
    return catalogue
