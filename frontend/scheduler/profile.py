"""Placement profiles: ``triton_configs/*.yaml``, validated, and what follows from one for the devices that are there.

Every error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forcefields.catalogue import Catalogue
from forcegate.errors import SetupError
from frontend.scheduler.device import Device
from frontend.scheduler.policy import Policy

FOLDER = Path(__file__).parents[2] / "triton_configs"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Devices(_Part):
    """What the profile is made for; ``plan`` assumes them where the machine has others."""

    kind: Literal["cpu", "gpu", "mig"]
    count: int = Field(ge=1, le=4096)
    memory_gb: float = Field(gt=0)


class Group(_Part):
    """Families that share devices. ``devices`` are positions, from 0; ``replicas`` copies of each model on different devices."""

    families: tuple[str, ...] = Field(min_length=1)
    devices: tuple[int, ...] = Field(min_length=1)
    replicas: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Group:
        if self.replicas > len(set(self.devices)):
            raise ValueError(f"{self.replicas} replicas need as many devices, and {len(set(self.devices))} are named")
        return self


class Profile(_Part):
    """A placement profile.

    Attributes:
        groups: where families live; those of no group go to any device that no group has.
        spare: devices that stand in for one of a group that cannot be used; nothing else goes there.
        prewarm: models that are loaded at the start; empty is the first model of every family of a group.
        pinned: models that are never evicted.
    """

    description: str
    devices: Devices
    margin_mb: int = Field(2000, ge=0)
    models_per_device: int = Field(2, ge=1)
    idle_seconds: float = Field(3600.0, gt=0)
    groups: tuple[Group, ...] = ()
    spare: tuple[int, ...] = ()
    prewarm: tuple[str, ...] = ()
    pinned: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _devices_exist(self) -> Profile:
        named = [*self.spare, *(device for group in self.groups for device in group.devices)]
        if wrong := sorted({device for device in named if not 0 <= device < self.devices.count}):
            raise ValueError(f"there is no device {wrong[0]}: they are counted from 0 to {self.devices.count - 1}")
        if both := set(self.spare) & {device for group in self.groups for device in group.devices}:
            raise ValueError(f"device {min(both)} is spare and belongs to a group")
        families = [family for group in self.groups for family in group.families]
        if twice := {family for family in families if families.count(family) > 1}:
            raise ValueError(f"the family {min(twice)} is in two groups")
        return self


def names() -> list[str]:
    """The profiles that come with Forcegate."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str) -> Profile:
    """A profile by its name, or by the path of a file.

    Raises:
        SetupError: there is none, or it does not fit; with the line.
    """
    return parse(text(name), _path(name).name)


def _path(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"


def text(name: str) -> str:
    """What is written in the file of a profile.

    Raises:
        SetupError: there is none.
    """
    try:
        return _path(name).read_text()
    except OSError:
        raise SetupError(
            f"There is no profile {name[:80]!r}.", f"Known are {', '.join(names())}; or give a path to a .yaml."
        ) from None


def parse(text: str, file: str = "profile") -> Profile:
    """A profile from its text.

    Raises:
        SetupError: it is no YAML, or does not fit; ``file:line`` is in the message.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 1
        raise SetupError(f"{file}:{line}: {getattr(error, 'problem', None) or 'not YAML'}.", "Correct the line.") from None
    if not isinstance(data, dict):
        raise SetupError(
            f"{file}:1: a profile is a mapping with `description`, `devices` and `groups`.", "Compare triton_configs/."
        )
    if repeated := _repeated(root):
        raise SetupError(f"{file}:{repeated[1]}: {repeated[0]!r} is there twice.", "Correct the line.")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        told = [
            f"{file}:{_line(root, e['loc'])}: {'.'.join(map(str, e['loc'])) or 'profile'}: {_plain(e['msg'])}"
            for e in error.errors()
        ]
        raise SetupError("; ".join(told) + ".", "docs/scheduler.md describes the fields.") from None


def check(profile: Profile, catalogue: Catalogue, file: str) -> None:
    """Whether its families and models exist.

    Raises:
        SetupError, UnknownModel: they do not.
    """
    families = {catalogue.family_of(variant).name for variant in catalogue.variants.values()}
    for family in (family for group in profile.groups for family in group.families):
        if family not in families:
            raise SetupError(f"{file}: there is no family {family!r}.", f"Known are {', '.join(sorted(families))}.")
    for model in (*profile.prewarm, *profile.pinned):
        catalogue.resolve(model)


def policy(profile: Profile, catalogue: Catalogue, inventory: Sequence[Device]) -> Policy:
    """The profile's policy on the devices that are there: a spare one stands in for each of a group that is at fault."""
    ordered = sorted(inventory, key=lambda device: device.order)
    spare = [ordered[at] for at in profile.spare if at < len(ordered) and not ordered[at].fault]
    allowed: dict[str, tuple[str, ...]] = {}
    taken: dict[int, str] = {}
    reserved: dict[str, frozenset[str]] = {device.id: frozenset() for device in spare}
    least: dict[str, int] = {}
    for group in profile.groups:
        ids = []
        for at in (at for at in group.devices if at < len(ordered)):
            if ordered[at].fault and at not in taken and spare:
                taken[at] = spare.pop(0).id
            ids.append(taken.get(at, ordered[at].id))
        models = frozenset(_models(catalogue, group.families))
        allowed |= dict.fromkeys(models, tuple(ids))
        if group.replicas > 1:
            least |= dict.fromkeys(models, group.replicas)
        for device in ids:
            reserved[device] = reserved.get(device, frozenset()) | models
    return Policy(
        margin_mb=profile.margin_mb,
        models_per_device=profile.models_per_device,
        idle_seconds=profile.idle_seconds,
        pinned=frozenset(catalogue.resolve(model).name for model in profile.pinned),
        allowed=allowed,
        reserved=reserved,
        least=least,
    )


def prewarmed(profile: Profile, catalogue: Catalogue) -> list[tuple[str, int]]:
    """The models that are loaded at the start, with the number of their replicas."""
    replicas = {family: group.replicas for group in profile.groups for family in group.families}
    if profile.prewarm:
        variants = [catalogue.resolve(model) for model in profile.prewarm]
        return [(variant.name, replicas.get(catalogue.family_of(variant).name, 1)) for variant in variants]
    return [(next(iter(_models(catalogue, (family,)))), group.replicas) for group in profile.groups for family in group.families]


def _models(catalogue: Catalogue, families: Iterable[str]) -> list[str]:
    wanted = set(families)
    found = [v for v in catalogue.variants.values() if catalogue.family_of(v).name in wanted]
    return [v.name for v in sorted(found, key=lambda v: v.hidden)]


def _line(node: Any, location: Sequence[int | str]) -> int:
    """The line, from 1, of the value at ``location``; of the nearest thing around it where it is missing."""
    line = int(node.start_mark.line)
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _repeated(node: Any) -> tuple[str, int] | None:
    """A key that is in one mapping twice, which YAML would pass over in silence."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                return key.value, key.start_mark.line + 1
            seen.add(key.value)
            if (found := _repeated(value)) is not None:
                return found
    elif isinstance(node, yaml.SequenceNode):
        return next((found for value in node.value if (found := _repeated(value)) is not None), None)
    return None


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
