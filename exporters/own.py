"""Users' own checkpoints: fine-tuned ones, served under a name of theirs like any other variant.

What is known of one is in ``exports.json`` of the state folder, written as an entry of ``family.toml``; the catalogue reads it. The
checkpoint itself is copied, so that it stays what it was when it passed its gate.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters import checkpoints, family_python, records, versions
from exporters.lock import locked
from exporters.prepare import FOREIGN, lock
from exporters.repository import format_elements
from forcefields.catalogue import EXPORTS, RECORD, Catalogue, Family, Variant
from forcefields.verification import sha256
from forcegate.errors import CheckpointMismatch, InvalidRequest, SetupError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NOT_STATED = "not stated"


@dataclass(frozen=True)
class OwnCheckpoint:
    """What a user says of a checkpoint.

    Attributes:
        family: empty where ``like`` tells it.
        like: the variant that it was tuned from; what is not said here is taken from that one.
        heads: the first of them is the default.
    """

    path: Path
    name: str
    family: str = ""
    like: str = ""
    functional: str = ""
    training_data: str = ""
    licence: str = ""
    heads: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name that the copy gets: that of the file, unless something else of a model has it."""
        name = self.path.absolute().name
        return f"checkpoint-{name}" if name in ("model.py", "manifest.json") or name.startswith(".") else name


def family_of(catalogue: Catalogue, own: OwnCheckpoint) -> Family:
    """The family that an own checkpoint belongs to.

    Raises:
        InvalidRequest: neither family nor like, or they do not fit together; the file, or the name, will not do.
        UnknownModel: ``like`` is no model.
    """
    if not NAME.fullmatch(own.name):
        raise InvalidRequest(f"{own.name!r} cannot be a model's name.", "Take letters, digits, dots, hyphens and underscores.")
    if not own.path.exists():
        raise InvalidRequest(f"There is no file {own.path}.", "")
    known = catalogue.variants.get(catalogue.aliases.get(own.name, own.name))
    retired = any(own.name in family.retired for family in catalogue.families.values())
    if retired or (known is not None and known.checkpoint.source != "own"):
        raise InvalidRequest(f"{own.name!r} is the name of another model already.", "Give your checkpoint another name with --as.")
    name = catalogue.resolve(own.like).family if own.like else own.family
    if own.family and own.family != name:
        raise InvalidRequest(f"{own.like} is of the family {name}, not {own.family}.", "Leave --family out, or correct it.")
    if name not in catalogue.families:
        raise InvalidRequest(
            f"There is no family {name!r}." if name else "The family of the checkpoint is not known.",
            f"Give --family, one of {', '.join(sorted(catalogue.families))}; or --like with the model that it was tuned from.",
        )
    return catalogue.families[name]


def add(catalogue: Catalogue, own: OwnCheckpoint, state: Path, environments: Path, log: Path) -> None:
    """Copies the checkpoint into place, reads its elements and cutoff in its family's environment, and enters it into the record.

    Nothing is done where the same bytes have this name already.

    Raises:
        SetupError: the name has other bytes already, the package cannot read the checkpoint, or it cannot be written.
        CheckpointMismatch: the bytes have another name already.
        InvalidRequest: as ``family_of``.
    """
    family = family_of(catalogue, own)
    digest = sha256(own.path)
    entry = _entry(catalogue, family, own, digest)
    target = state / FOREIGN / own.name / "1" / own.file
    before = records.read(state / EXPORTS).get(own.name)
    if before is not None:
        _same_or_raise(before, family, entry, own)
        if not target.exists():
            checkpoints.copy(own.path, target)
        return
    checkpoints.refuse_a_second_name(catalogue, own.name, digest, state)
    checkpoints.copy(own.path, target)
    arguments = (family.name, str(target.resolve()), json.dumps(entry))
    try:
        found = family_python.ask(environments, family.environment, "examine", *arguments, log=log)
    except family_python.Unreadable as error:
        shutil.rmtree(target.parents[1], ignore_errors=True)
        raise SetupError(
            f"{family.package} {family.version} cannot read {own.path}: {error.detail}",
            "Is it a checkpoint of this package, in the format that it saves itself? "
            "One that does not hold its architecture needs --like with the model that it was tuned from.",
        ) from None
    except BaseException:
        shutil.rmtree(target.parents[1], ignore_errors=True)
        raise
    entry |= {"elements": format_elements(tuple(found["elements"])), "cutoff": found["cutoff"]}
    record = {"family": family.name, "like": own.like, "variant": entry}
    try:
        with records.held(state / RECORD):  # another export may have been given the same bytes meanwhile
            checkpoints.refuse_a_second_name(catalogue, own.name, digest, state)
            records.update(state / EXPORTS, lambda data: data.update({own.name: record}))
    except CheckpointMismatch:
        shutil.rmtree(target.parents[1], ignore_errors=True)
        raise


def is_another(catalogue: Catalogue, own: OwnCheckpoint, state: Path) -> bool:
    """Whether the name belongs to a checkpoint with other bytes, or of which something else was said.

    Raises:
        InvalidRequest: as ``family_of``.
    """
    family, before = family_of(catalogue, own), records.read(state / EXPORTS).get(own.name)
    if before is None:
        return False
    try:
        _same_or_raise(before, family, _entry(catalogue, family, own, sha256(own.path)), own)
    except SetupError:
        return True
    return False


def remove(name: str, state: Path) -> None:
    """Removes a user's own checkpoint and all that is recorded of it.

    Raises:
        InvalidRequest: ``name`` is no own checkpoint.
    """
    known = records.read(state / EXPORTS)
    if name not in known:
        shown = f"They are: {', '.join(known)}." if known else "There are none."
        raise InvalidRequest(f"{name!r} is no checkpoint of your own.", f"Only those are removed. {shown}")
    with locked(lock(state, name), lambda _line: None, ""):
        records.update(state / EXPORTS, lambda data: data.pop(name, None))
        records.update(state / RECORD, lambda data: data.pop(name, None))
        shutil.rmtree(state / FOREIGN / name, ignore_errors=True)
        for path in versions.files(name, state):
            path.unlink(missing_ok=True)


def _same_or_raise(before: dict[str, Any], family: Family, entry: dict[str, Any], own: OwnCheckpoint) -> None:
    known = before["variant"]
    if before["family"] != family.name or known["checkpoint"]["sha256"] != entry["checkpoint"]["sha256"]:
        raise SetupError(
            f"{own.name} is another checkpoint already: {known['checkpoint']['path']} "
            f"(sha256 {known['checkpoint']['sha256']}), exported before.",
            f"Take another name, give --replace, or run `forcegate export --remove {own.name}` first.",
        )
    differing = [key for key in entry if key != "checkpoint" and entry[key] != known.get(key)]
    if differing:
        raise SetupError(
            f"{own.name} is exported already with another {', '.join(differing)}.",
            f"Run `forcegate export --remove {own.name}` first: nobody's results should change their meaning.",
        )


def _entry(catalogue: Catalogue, family: Family, own: OwnCheckpoint, digest: str) -> dict[str, Any]:
    """The entry without elements and cutoff, which the checkpoint itself tells."""
    if own.like:
        entry = _as_entry(catalogue.resolve(own.like))
        summary = f"A checkpoint of this machine's users, tuned from {catalogue.resolve(own.like).name}"
    else:
        entry = dict(tomllib.loads((family.folder / "family.toml").read_text()).get("defaults", {}))
        entry |= {"functional": "", "training_data": "", "licence": "", "dispersion": "forbidden"}
        summary = f"A checkpoint of this machine's users, of the family {family.title}"
    if own.functional and own.functional != entry["functional"]:
        # Which correction fits, if any, nobody has said of this functional.
        entry |= {"dispersion": "forbidden", "head_dispersion": {}, "head_functionals": {}}
    entry |= {
        "aliases": [],
        "summary": summary,
        "functional": own.functional or entry["functional"] or NOT_STATED,
        "training_data": own.training_data or NOT_STATED,
        "licence": own.licence or entry["licence"] or NOT_STATED,
        "hidden": False,
        "token": False,
    }
    if own.heads:
        entry |= {"heads": list(own.heads), "default_head": own.heads[0], "head_functionals": {}, "head_dispersion": {}}
        entry["charge_heads"] = [head for head in entry.get("charge_heads", ()) if head in own.heads]
    entry["checkpoint"] = {
        "file": own.file,
        "source": "own",
        "sha256": digest,
        "path": str(own.path.resolve()),
        "recorded": True,
    }
    for left_out in ("elements", "cutoff"):
        entry.pop(left_out, None)
    return json.loads(json.dumps(entry))


def _as_entry(variant: Variant) -> dict[str, Any]:
    entry = asdict(variant)
    del entry["name"], entry["family"]
    return entry
