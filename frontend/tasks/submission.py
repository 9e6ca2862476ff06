"""The body of a task, read and checked before anything is queued. Plain functions without I/O, as in ``frontend.requests``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forcefields.runtime.physics import check_geometry
from forcegate.calculations.placements import guest_of
from forcegate.errors import ForcegateError, InvalidRequest, UnsupportedTask
from forcegate.structure import Structure, from_atoms, to_mapping
from frontend.entries import cleaned, kind_of, read_structure
from frontend.requests import Limits, atoms_of, flag, heads_of, mapping, model_names, required, text
from frontend.tasks.kinds import CALCULATIONS, TaskParameters
from frontend.tasks.kinds.interaction_energy import InteractionEnergy
from frontend.tasks.task import Callback, Options, Priority, Status

_Model = TypeVar("_Model", bound=BaseModel)


class CallbackBody(BaseModel):
    """Where to tell of the task."""

    model_config = ConfigDict(strict=True)

    url: str = Field(min_length=8, max_length=2000, pattern="^https?://[!-~]+$", description="http or https.")
    events: list[Literal["PENDING", "QUEUED", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"]] = Field(
        ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"], min_length=1, max_length=7, description="States to tell of."
    )
    secret: str | None = Field(None, pattern="^[ -~]{1,500}$", description="Signs what is sent, HMAC-SHA256. Never shown.")


class OptionsBody(BaseModel):
    """How a task is to be carried out."""

    model_config = ConfigDict(strict=True)

    priority: Literal["CRITICAL", "HIGH", "NORMAL", "LOW"] | None = Field(
        None, description="Null is NORMAL, and HIGH where the answer is waited for."
    )
    timeout_seconds: int = Field(86_400, ge=60, le=86_400, description="From its start.")
    callback: CallbackBody | None = Field(None, description="Where to tell of it.")
    idempotency_key: str | None = Field(
        None, pattern="^[!-~]{1,200}$", description="The same key with the same content gives the task of the first time."
    )
    detach: bool = Field(
        False, description="Where the answer is waited for: whether the task goes on when its caller leaves. Else it is cancelled."
    )


@dataclass(frozen=True)
class Submission:
    """What somebody asks for, as far as it can be judged without knowing the models.

    Attributes:
        kind: name of the kind.
        models: names or aliases as they were given.
        heads: head by name of the model, empty for the default.
        dispersion: ``none``, ``d3bj`` or ``auto``.
        parameters: of the kind, JSON; ``frontend.tasks.checks`` adds models and heads.
        structures: that models have to know the elements of: of a batch those that could be read, by their places.
        options: of the task.
        detach: it goes on when a caller who waits for it leaves.
        prioritised: the caller chose the priority.
        guest: of an interaction, else None.
        atoms: in all structures.
    """

    kind: str
    models: tuple[str, ...]
    heads: Mapping[str, str]
    dispersion: str
    parameters: dict[str, Any]
    structures: Mapping[int, Structure]
    options: Options
    detach: bool = False
    prioritised: bool = False
    guest: Structure | None = None
    atoms: int = 0


def read(name: str, data: Mapping[str, Any], limits: Limits) -> Submission:
    """The submission in a body.

    Args:
        name: of the kind.

    Raises:
        InvalidRequest: a field is missing or of a wrong type, or values do not fit each other.
        InvalidStructure: (``batch`` keeps it in the structure's place) the atoms cannot be understood.
        StructureTooLarge: (likewise) they are too many.
    """
    if name == "batch":
        return _batch(data, limits)
    if name == "multi-model":
        return _multi_model(data, limits)
    asked, guest = _parameters(name, data, limits)
    structure = _structure(_atoms_of(name, data), asked, limits)
    return _submission(
        name,
        (text(data, "model_name"),),
        asked,
        {"parameters": asked.model_dump(mode="json"), "atoms": to_mapping(structure)},
        {0: structure},
        data,
        guest=guest,
    )


def _batch(data: Mapping[str, Any], limits: Limits) -> Submission:
    task = _task(data)
    # Those of single points may stand beside `task`, as they do in a batch that answers at once.
    given = {**({} if task != "single-point" else data), **mapping(data, "task_params")}
    asked, guest = _parameters(task, {**_level(data), **given}, limits)
    entries = required(data, "atoms")
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Sequence):
        raise InvalidRequest(f"`atoms` has to be a list of structures, and it is {kind_of(entries)}.")
    if not entries or len(entries) > limits.max_batch:
        raise InvalidRequest(f"`atoms` holds {len(entries)} structures; a batch takes 1 to {limits.max_batch}.", "")
    structures: dict[int, Structure] = {}
    listed: list[dict[str, Any]] = []
    for index, entry in enumerate(entries):
        try:
            structures[index] = _structure(entry, asked, limits)
            listed.append({"atoms": to_mapping(structures[index])})
        except ForcegateError as error:
            listed.append({"error": error.as_dict()})
    parameters = {"task": task, "parameters": asked.model_dump(mode="json"), "structures": listed}
    return _submission("batch", (text(data, "model_name"),), asked, parameters, structures, data, guest=guest)


def _multi_model(data: Mapping[str, Any], limits: Limits) -> Submission:
    task, given = _task(data), mapping(data, "task_params")
    asked, guest = _parameters(task, {**_level(data), **given}, limits)
    names, heads, align = model_names(data), heads_of(given), flag(given, "align", True)
    structure = _structure(atoms_of(data), asked, limits)
    parameters = {"task": task, "parameters": asked.model_dump(mode="json"), "atoms": to_mapping(structure), "align": align}
    submission = _submission("multi-model", names, asked, parameters, {0: structure}, data, guest=guest)
    return replace(submission, heads={name: heads.get(name) or asked.head or "" for name in names})


def _submission(
    kind: str,
    models: tuple[str, ...],
    asked: TaskParameters,
    parameters: dict[str, Any],
    structures: Mapping[int, Structure],
    data: Mapping[str, Any],
    guest: Structure | None,
) -> Submission:
    body = validated(OptionsBody, mapping(data, "options"), "options.")
    callback = None
    if body.callback is not None:
        try:
            host = urlsplit(body.callback.url).hostname
        except ValueError:
            host = None
        if not host:
            raise InvalidRequest("`options.callback.url` is no address.", "It has to look like https://example.org/path.")
        events = tuple(Status(event).value for event in body.callback.events)
        callback = Callback(body.callback.url, events, body.callback.secret)
    options = Options(Priority(body.priority or "NORMAL"), body.timeout_seconds, callback, body.idempotency_key)
    return Submission(
        kind=kind,
        models=models,
        heads=dict.fromkeys(models, asked.head or ""),
        dispersion=asked.level(),
        parameters=parameters,
        structures=structures,
        options=options,
        detach=body.detach,
        prioritised=body.priority is not None,
        guest=guest,
        atoms=sum(map(len, structures.values())),
    )


def validated(model: type[_Model], data: Mapping[str, Any], prefix: str = "") -> _Model:
    """The fields of ``data`` as ``model`` has them.

    Raises:
        InvalidRequest: the first of them that is not as it should be.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # A union tells of each of its types; what is said of the field as a whole is enough.
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("literal[", "dict["))) or "the body"
        raise InvalidRequest(
            cleaned(f"`{(prefix + place)[:100]}`: {first['msg'][:300]}."), "Compare the body with the schema at /docs."
        ) from None


def _parameters(name: str, data: Mapping[str, Any], limits: Limits) -> tuple[TaskParameters, Structure | None]:
    """The parameters of one kind, and the guest that they name."""
    guest = None
    given = dict(data)
    if name == "interaction-energy" and isinstance(data.get("guest"), Mapping):
        guest = read_structure(data["guest"], limits)
        check_geometry(guest)
        given["guest"] = to_mapping(guest)
    asked = validated(CALCULATIONS[name].parameters, given)
    asked.check()
    if isinstance(asked, InteractionEnergy) and isinstance(asked.guest, str):
        guest = from_atoms(guest_of(asked.guest))
    return asked, guest


def _structure(entry: Any, asked: TaskParameters, limits: Limits) -> Structure:
    structure = read_structure(entry, limits)
    check_geometry(structure)
    asked.check_structure(structure.to_atoms(), limits.max_atoms)
    return structure


def _atoms_of(name: str, data: Mapping[str, Any]) -> Any:
    if name == "interaction-energy" and data.get("atoms") is None and data.get("host") is not None:
        return atoms_of(data, "host")
    return atoms_of(data)


def _task(data: Mapping[str, Any]) -> str:
    """The kind that a batch or a comparison is made of."""
    task = data.get("task", "single_point")
    if not isinstance(task, str):
        raise InvalidRequest(f"`task` has to be a text, and it is {kind_of(task)}.")
    name = task.replace("_", "-")
    if name not in CALCULATIONS:
        known = ", ".join(known.replace("-", "_") for known in CALCULATIONS)
        raise UnsupportedTask(cleaned(f"The task {task[:40]!r} is not known."), f"There are {known}.")
    return name


def _level(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: data[name] for name in ("head", "dispersion", "use_d3") if name in data}
