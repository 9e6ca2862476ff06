"""The bodies of calculations, read into typed records. Plain functions without I/O: they run on the event loop for small bodies
and in a decoder process for large ones.

Unknown fields are ignored, so that clients of older gateways go on working; fields that are known are checked for their type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgpack
import orjson

from forcegate.dispersion import CHOICES
from forcegate.errors import ForcegateError, InvalidRequest, UnknownHead
from forcegate.structure import Structure
from frontend.entries import cleaned, cleaned_values, kind_of, read_structure

if TYPE_CHECKING:
    from frontend.structures.upload import Upload
    from frontend.tasks.submission import Submission

MediaType = Literal["json", "msgpack"]
UPLOAD = "structure"
"""In place of a calculation: a structure that is to be kept."""
Calculation = Literal["single_point", "batch", "multi_model"]
TASK = "task:"
"""Before the name of a kind of task, where a body is one for the queue."""

MAX_MODELS = 16
"""Models that one comparison may name."""
_NAME_LENGTH = 200


@dataclass(frozen=True)
class Limits:
    """What a body may ask for.

    Attributes:
        max_batch: structures in a batch.
        max_atoms: atoms in a structure.
        stored: uploaded structures that the body names and that are the caller's, by id; None before they were looked up.
    """

    max_batch: int
    max_atoms: int
    stored: Mapping[str, Structure] | None = None


@dataclass(frozen=True)
class Named:
    """A body that names uploaded structures, which are needed to read it. ``ids`` has each as often as it is named."""

    ids: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What every calculation may ask of a model. ``head`` is empty for the model's default."""

    forces: bool = True
    stress: bool = True
    head: str = ""
    dispersion: str = "auto"


@dataclass(frozen=True)
class SinglePoint:
    """One structure for one model."""

    model: str
    options: Options
    structure: Structure


@dataclass(frozen=True)
class Batch:
    """Many structures for one model; one that could not be read is here as its error."""

    model: str
    options: Options
    structures: tuple[Structure | ForcegateError, ...]


@dataclass(frozen=True)
class MultiModel:
    """One structure for several models. ``heads`` names the head by model, before ``options.head``."""

    models: tuple[str, ...]
    task: str
    options: Options
    heads: Mapping[str, str]
    align: bool
    structure: Structure


def decode(
    calculation: Calculation | str, body: bytes, media: str, limits: Limits
) -> SinglePoint | Batch | MultiModel | Submission | Upload | Named:
    """The typed record of one body; a batch or a comparison of anything but single points is for the queue.

    Args:
        media: a ``MediaType``; the Content-Type of a file that is uploaded.

    Raises:
        InvalidRequest: the body cannot be read, a field is missing or of a wrong type.
        InvalidStructure: (``batch`` keeps it in the structure's place) the atoms cannot be understood.
        StructureTooLarge: (likewise) more atoms than ``limits.max_atoms``.
    """
    if calculation == UPLOAD:
        from frontend.structures import upload  # whose libraries take long to load

        return upload.read(body, media, limits)
    data = loads(body, media)
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"The body has to be an object, and it is {kind_of(data)}.")
    if limits.stored is None and (ids := _named(data, limits)):
        return Named(ids)
    if calculation == "single_point":
        return _single_point(data, limits)
    if calculation.startswith(TASK) or data.get("task", "single_point") not in ("single_point", "single-point"):
        from frontend.tasks import submission  # which is built upon this module

        return submission.read(calculation.removeprefix(TASK).replace("_", "-"), data, limits)
    return _batch(data, limits) if calculation == "batch" else _multi_model(data, limits)


def load_dtype(body: bytes, media: MediaType) -> str:
    """The dtype that the body of a load asks for, empty for the model's own; there may be no body.

    Raises:
        InvalidRequest: the body cannot be read, or is no object, or its ``dtype`` no string.
    """
    data = loads(body, media) if body else {}
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"The body has to be an object, and it is {kind_of(data)}.")
    dtype = data.get("dtype") or ""
    if not isinstance(dtype, str):
        raise InvalidRequest(f"`dtype` has to be a string, and it is {kind_of(dtype)}.")
    return dtype


def _named(data: Mapping[str, Any], limits: Limits) -> tuple[str, ...]:
    """The uploaded structures that a body names; no more of them than a body may hold structures."""
    atoms, parameters = data.get("atoms"), data.get("task_params")
    entries = [data, atoms, data.get("host"), data.get("guest"), parameters.get("guest") if isinstance(parameters, dict) else None]
    if isinstance(atoms, list):
        entries += atoms[: limits.max_batch]
    return tuple(
        identifier
        for entry in entries
        if isinstance(entry, dict) and isinstance(identifier := entry.get("structure_id"), str) and identifier
    )


def atoms_of(data: Mapping[str, Any], name: str = "atoms") -> Any:
    """The structure of a body: what it has under ``name``, or the uploaded one that ``structure_id`` names.

    Raises:
        InvalidRequest: neither is there, or both are.
    """
    if data.get("structure_id") is None:
        return required(data, name)
    if data.get(name) is not None:
        raise InvalidRequest(f"`{name}` and `structure_id` are both given.", "Leave one of them out.")
    return {"structure_id": data["structure_id"]}


def loads(body: bytes, media: str) -> Any:
    """The body as Python values.

    Raises:
        InvalidRequest: it is empty or malformed.
    """
    if not body:
        raise InvalidRequest("The body is empty.")
    try:
        if media == "msgpack":
            return msgpack.unpackb(body, raw=False, strict_map_key=False)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            if b"NaN" in body or b"Infinity" in body:
                # Python's own encoder writes NaN as a bare word. It is read here, so that the structure is refused by name.
                return cleaned_values(json.loads(body))
            raise
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"The body is not {media}: {cleaned(str(error) or type(error).__name__)[:200]}.") from None


def _single_point(data: Mapping[str, Any], limits: Limits) -> SinglePoint:
    model = text(data, "model_name")
    return SinglePoint(model, _options(data), read_structure(atoms_of(data), limits))


def _batch(data: Mapping[str, Any], limits: Limits) -> Batch:
    model, options = text(data, "model_name"), _options(data)
    entries = required(data, "atoms")
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Sequence):
        raise InvalidRequest(f"`atoms` has to be a list of structures, and it is {kind_of(entries)}.")
    if not entries:
        raise InvalidRequest("`atoms` is empty.", "Send at least one structure.")
    if len(entries) > limits.max_batch:
        raise InvalidRequest(
            f"`atoms` holds {len(entries)} structures; one batch takes at most {limits.max_batch}.",
            "Send them in several requests.",
        )
    structures: list[Structure | ForcegateError] = []
    for entry in entries:
        try:
            structures.append(read_structure(entry, limits))
        except ForcegateError as error:
            structures.append(error)
    return Batch(model, options, tuple(structures))


def _multi_model(data: Mapping[str, Any], limits: Limits) -> MultiModel:
    names = model_names(data)
    task = data.get("task", "single_point")
    if not isinstance(task, str):
        raise InvalidRequest("`task` has to be the name of a calculation.", "`single_point` is served.")
    parameters = mapping(data, "task_params")
    heads = heads_of(parameters)
    return MultiModel(
        models=names,
        task=task,
        options=_options(parameters),
        heads=heads,
        align=flag(parameters, "align", True),
        structure=read_structure(atoms_of(data), limits),
    )


def model_names(data: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that are to be compared, as they were named."""
    names = required(data, "model_names")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise InvalidRequest("`model_names` has to be a list of model names.")
    if not names or len(names) > MAX_MODELS:
        raise InvalidRequest(f"`model_names` holds {len(names)} names; give 1 to {MAX_MODELS}.", "")
    return tuple(names)


def heads_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The heads that are wanted, by the names of their models."""
    heads = parameters.get("heads")
    if heads is None:
        return {}
    if not isinstance(heads, Mapping) or not all(isinstance(part, str) for pair in heads.items() for part in pair):
        raise InvalidRequest("`task_params.heads` has to give a head's name for a model's name.")
    return dict(heads)


def require_head(model: str, heads: Sequence[str], head: str) -> None:
    """Checks that a model with ``heads`` has the one that is asked for; an empty one is the default.

    Raises:
        UnknownHead: it has not.
    """
    if head and head not in heads:
        known = ", ".join(heads)
        raise UnknownHead(
            f"The model {model!r} has no head {head[:60]!r}.",
            f"Its heads are: {known}." if known else "It has a single one: leave `head` out.",
        )


def _options(data: Mapping[str, Any]) -> Options:
    dispersion = data.get("dispersion")
    if dispersion is not None and dispersion not in CHOICES:
        raise InvalidRequest(f"`dispersion` has to be one of {', '.join(CHOICES)}.")
    if flag(data, "use_d3", False):
        if dispersion == "none":
            raise InvalidRequest("`use_d3` is true and `dispersion` is none.", "Leave one of them out.")
        dispersion = "d3bj"
    head = data.get("head")
    if head is not None and not isinstance(head, str):
        raise InvalidRequest(f"`head` has to be the name of a head, and it is {kind_of(head)}.")
    return Options(
        forces=flag(data, "compute_forces", True),
        stress=flag(data, "compute_stress", True),
        head=(head or "")[:_NAME_LENGTH],
        dispersion=dispersion or "auto",
    )


def required(data: Mapping[str, Any], name: str) -> Any:
    if data.get(name) is None:
        raise InvalidRequest(f"`{name}` is missing.")
    return data[name]


def text(data: Mapping[str, Any], name: str) -> str:
    value = required(data, name)
    if not isinstance(value, str):
        raise InvalidRequest(f"`{name}` has to be a text, and it is {kind_of(value)}.")
    return value[:_NAME_LENGTH]


def mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object that may be left out."""
    value = data.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"`{name}` has to be an object, and it is {kind_of(value)}.")
    return value


def flag(data: Mapping[str, Any], name: str, default: bool) -> bool:
    value = data.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` has to be true or false, and it is {kind_of(value)}.")
    return value
