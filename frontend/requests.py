"""The bodies of calculations, read into typed records. Plain functions without I/O: they run on the event loop for small bodies
and in a decoder process for large ones.

Unknown fields are ignored, so that clients of older gateways go on working; fields that are known are checked for their type.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, cast

import msgpack
import numpy as np
import orjson

from forcegate import arrays
from forcegate.dispersion import CHOICES
from forcegate.errors import ForcegateError, InvalidRequest, InvalidStructure, StructureTooLarge, UnknownHead
from forcegate.structure import Structure, from_mapping

if TYPE_CHECKING:
    from frontend.tasks.submission import Submission

logger = logging.getLogger(__name__)

MediaType = Literal["json", "msgpack"]
Calculation = Literal["single_point", "batch", "multi_model"]
TASK = "task:"
"""Before the name of a kind of task, where a body is one for the queue."""

MAX_MODELS = 16
"""Models that one comparison may name."""
_NAME_LENGTH = 200
_HOLD_TEXT: frozenset[type] = frozenset((str, list, dict))
_NUMBERS: frozenset[type] = frozenset((int, float, type(None)))
"""Types that arrays of coordinates may hold. A null is a NaN, as JSON encoders write it; the model refuses it by name."""


@dataclass(frozen=True)
class Limits:
    """What a body may ask for: structures in a batch, atoms in a structure."""

    max_batch: int
    max_atoms: int


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
    calculation: Calculation | str, body: bytes, media: MediaType, limits: Limits
) -> SinglePoint | Batch | MultiModel | Submission:
    """The typed record of one body; a batch or a comparison of anything but single points is for the queue.

    Raises:
        InvalidRequest: the body cannot be read, a field is missing or of a wrong type.
        InvalidStructure: (``batch`` keeps it in the structure's place) the atoms cannot be understood.
        StructureTooLarge: (likewise) more atoms than ``limits.max_atoms``.
    """
    data = loads(body, media)
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"The body has to be an object, and it is {kind_of(data)}.")
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


def loads(body: bytes, media: MediaType) -> Any:
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
    return SinglePoint(model, _options(data), read_structure(required(data, "atoms"), limits))


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
        structure=read_structure(required(data, "atoms"), limits),
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


def read_structure(entry: Any, limits: Limits) -> Structure:
    """A structure from one entry of a body.

    Raises:
        InvalidStructure: it cannot be understood.
        StructureTooLarge: it has more than ``limits.max_atoms`` atoms; found before the arrays are built where possible.
    """
    if isinstance(entry, Mapping) and "text" not in entry and "format" not in entry:
        entry = _with_arrays(entry)
        _check_atoms(entry, limits)
    try:
        structure = from_mapping(entry)
    except ForcegateError as error:
        error.detail, error.hint = cleaned(error.detail), cleaned(error.hint)
        raise
    except (ValueError, TypeError, OverflowError, ArithmeticError, LookupError, RecursionError) as error:
        logger.warning("A structure broke the parser: %s", type(error).__name__)
        raise InvalidStructure("The structure cannot be read.", "Check its numbers, its cell, and its charge and spin.") from None
    _check_size(len(structure), limits)
    if len(structure) and not structure.numbers.all():
        # Atomic number 0 is padding on the way to the model: the atom would vanish in silence.
        raise InvalidStructure("The structure holds a dummy atom (X, atomic number 0).", "Remove it, or name its element.")
    return structure


def _with_arrays(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry with arrays where it holds their bytes; what is short anyway as lists, as if it had come so."""
    given = {name: entry[name] for name in ("positions", "numbers", "cell", "pbc") if arrays.is_packed(entry.get(name))}
    read: dict[str, Any] = {}
    for name, value in given.items():
        try:
            array = arrays.unpacked(value)
        except ValueError as error:
            raise InvalidStructure(f"`{name}` cannot be read as an array: {cleaned(str(error))}.", "See docs/clients.md.") from None
        if (array.dtype.kind == "b") != (name == "pbc"):
            raise InvalidStructure(f"`{name}` has to hold {'truth values' if name == 'pbc' else 'numbers'}.", "")
        read[name] = array.tolist() if name in ("cell", "pbc") else array
    return {**entry, **read} if read else entry


def _check_atoms(entry: Mapping[str, Any], limits: Limits) -> None:
    """The types that ``numpy`` would bend without a word: texts to numbers, true to 1, a scalar to an array."""
    symbols, numbers, positions = entry.get("symbols"), entry.get("numbers"), entry.get("positions")
    for name, value in (("symbols", symbols), ("numbers", numbers), ("positions", positions)):
        if value is not None and not isinstance(value, list | tuple | np.ndarray):
            raise InvalidStructure(f"`{name}` has to be a list, and it is {kind_of(value)}.", "")
        if value is not None:
            _check_size(len(value), limits)
    if isinstance(numbers, np.ndarray) and numbers.dtype.kind != "i":
        raise InvalidStructure("`numbers` has to hold integers.", "")
    if numbers is not None:
        if not isinstance(numbers, np.ndarray):
            _check_numbers(numbers, "numbers", _NUMBERS - {type(None)})
        if symbols is not None and len(symbols) != len(numbers):
            raise InvalidStructure(f"`symbols` names {len(symbols)} atoms and `numbers` {len(numbers)}.", "Give one of the two.")
    if positions is not None and not isinstance(positions, np.ndarray):
        _check_rows(positions, "positions")
    cell = entry.get("cell")
    if cell is not None:
        if not isinstance(cell, list | tuple):
            raise InvalidStructure(f"`cell` has to be a list, and it is {kind_of(cell)}.", "Three rows of three numbers, in A.")
        if cell and isinstance(cell[0], list | tuple):
            _check_rows(cell, "cell")
        else:
            _check_numbers(cell, "cell", _NUMBERS)
    for name in ("charge", "spin"):
        _check_numbers([entry.get(name)], name, _NUMBERS)
    info = entry.get("info")
    if info is not None and not isinstance(info, Mapping):
        raise InvalidStructure(f"`info` has to be an object, and it is {kind_of(info)}.", "")
    structure_spin = entry.get("spin")
    if isinstance(structure_spin, float) and not structure_spin.is_integer():
        raise InvalidStructure("`spin` has to be the multiplicity 2S+1: 1, 2, 3 ..., or 0 for the model's default.", "")


def _check_rows(rows: Sequence[Any], name: str) -> None:
    if not all(isinstance(row, list | tuple) for row in rows):
        raise InvalidStructure(f"`{name}` has to be a list of rows of three numbers.", "")
    _check_numbers(chain.from_iterable(rows), name, _NUMBERS)


def _check_numbers(values: Iterable[Any], name: str, allowed: frozenset[type]) -> None:
    wrong = set(map(type, values)) - allowed
    if wrong:
        raise InvalidStructure(f"`{name}` has to hold numbers, and it holds {_kind_of_type(next(iter(wrong)))}.", "")


def _check_size(atoms: int, limits: Limits) -> None:
    if atoms > limits.max_atoms:
        raise StructureTooLarge(
            f"The structure has {atoms} atoms; the service takes at most {limits.max_atoms}.", "Use a smaller cell."
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


def kind_of(value: Any) -> str:
    return _kind_of_type(type(value))


def _kind_of_type(kind: type) -> str:
    words = {str: "a text", bytes: "bytes", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return cast(str, words.get(kind, "null" if kind is type(None) else "a list" if kind in (list, tuple) else "something else"))


def cleaned_values(value: Any) -> Any:
    """``value`` with every text in it as valid Unicode; other readers than Python's own refuse what is not."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, list):
        return [cleaned_values(entry) if type(entry) in _HOLD_TEXT else entry for entry in value]
    if isinstance(value, dict):
        return {cleaned(key): cleaned_values(entry) for key, entry in value.items()}
    return value


def cleaned(text: str) -> str:
    """``text`` as valid Unicode: a lone surrogate, which JSON can carry, cannot be written out again."""
    return text.encode("utf-8", "replace").decode("utf-8")
