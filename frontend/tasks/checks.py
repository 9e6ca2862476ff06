"""What a submission asks of the models, checked and resolved before anything is queued."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ase.data import chemical_symbols

from forcefields.catalogue import Variant
from forcefields.runtime import physics
from forcegate.dispersion import correction_of
from forcegate.errors import ForcegateError, InvalidRequest, ModelNotReady, UnknownModel
from forcegate.structure import Structure
from frontend.requests import require_head
from frontend.tasks.submission import Submission
from frontend.triton.directory import LOADABLE, LOADING, Directory

ANY_SIZE = physics.Limits(sys.maxsize, sys.maxsize)
"""What fits depends on the device, and is for the model to say; the body's own limit has been looked at."""


@dataclass(frozen=True)
class Resolved:
    """A submission as it is queued: its parameters complete, JSON, and the canonical names of its models."""

    parameters: dict[str, Any]
    models: tuple[str, ...]


def resolve(directory: Directory, submission: Submission) -> Resolved:
    """Gives a submission its models.

    Raises:
        UnknownModel, UnknownHead, DispersionNotSupported: of a kind with one model.
        UnsupportedElement, ChargeNotSupported, SpinNotSupported: likewise; of a batch, where no structure is left.
        ModelNotReady, CheckpointMissing, CheckpointMismatch, GateFailed, EnvironmentBroken: a model cannot be asked, nor is it
            on its way back.
        InvalidRequest: a model is named twice.
    """
    if submission.kind == "multi-model":
        return _several(directory, submission)
    (name,) = submission.models
    level = _level(directory, name, submission.heads[name], submission.dispersion)
    parameters = submission.parameters | level
    variant = directory.entry(name).variant
    if submission.guest is not None:
        check_structure(variant, level["head"], submission.guest)
    if submission.kind != "batch":
        check_structure(variant, level["head"], submission.structures[0])
        return Resolved(parameters, (variant.name,))
    structures = list(submission.parameters["structures"])
    for index, structure in submission.structures.items():
        try:
            check_structure(variant, level["head"], structure)
        except ForcegateError as error:
            structures[index] = {"error": error.as_dict()}
    return Resolved(parameters | {"structures": structures}, (variant.name,))


def check_structure(variant: Variant, head: str | None, structure: Structure) -> None:
    """Checks that a model was made for ``structure``, as its own process does before each evaluation.

    Raises:
        ForcegateError: the error that a single point of it would have.
    """
    physics.validate(structure, head or "", variant, ANY_SIZE)


def _several(directory: Directory, submission: Submission) -> Resolved:
    """A model that cannot be asked has its error in its place, and the others are asked; where none can be, that is an error."""
    entries: list[dict[str, Any]] = []
    outside: dict[str, list[int]] = {}
    failures: list[ForcegateError] = []
    seen: dict[str, str] = {}
    structure = submission.structures[0]
    for name in submission.models:
        canonical = _canonical(directory, name)
        if canonical in seen:
            raise InvalidRequest(f"`model_names` names {canonical[:60]!r} twice ({seen[canonical][:60]!r} and {name[:60]!r}).", "")
        seen[canonical] = name
        try:
            variant = directory.entry(name).variant
            outside[name] = variant.elements_outside(structure.numbers.tolist())
            level = _level(directory, name, submission.heads[name], submission.dispersion)
            for each in (structure, submission.guest):
                if each is not None:
                    check_structure(variant, level["head"], each)
            entries.append({"name": name, "error": None} | level)
        except ForcegateError as error:
            failures.append(error)
            entries.append({"name": name, "error": error.as_dict(), "model": canonical, "head": None, "dispersion": "none"})
    if len(failures) == len(entries):
        raise failures[0]
    parameters = submission.parameters | {
        "models": entries,
        "outside": outside,
        "elements_outside": {name: [chemical_symbols[number] for number in numbers] for name, numbers in outside.items()},
    }
    return Resolved(parameters, tuple(entry["model"] for entry in entries if entry["error"] is None))


def _level(directory: Directory, name: str, head: str, dispersion: str) -> dict[str, Any]:
    """Canonical name, head and dispersion of one model, as they are queued."""
    entry = directory.entry(name)
    _require_ready(directory, name)
    variant = entry.variant
    require_head(variant.name, variant.heads, head)
    added = correction_of(variant.name, variant, head, dispersion)
    if added is not None:
        _require_ready(directory, added)
    return {"model": variant.name, "head": head or None, "dispersion": dispersion}


def _require_ready(directory: Directory, name: str) -> None:
    """Refuses a model that nobody loads; a task can wait for one that is being loaded or brought back."""
    try:
        directory.facts(name)
    except ModelNotReady:
        if directory.entry(name).state not in ((LOADING, LOADABLE) if directory.on_demand else (LOADING,)):
            raise


def _canonical(directory: Directory, name: str) -> str:
    try:
        return directory.entry(name).variant.name
    except UnknownModel:
        return name
