"""One structure of a body: checked for what ``numpy`` would bend without a word, and read. Plain functions without I/O."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from forcegate import arrays
from forcegate.errors import ForcegateError, InvalidRequest, InvalidStructure, NotFound, StructureTooLarge
from forcegate.structure import Structure, from_mapping

if TYPE_CHECKING:
    from frontend.requests import Limits

logger = logging.getLogger(__name__)

_HOLD_TEXT: frozenset[type] = frozenset((str, list, dict))
_NUMBERS: frozenset[type] = frozenset((int, float, type(None)))
"""Types that arrays of coordinates may hold. A null is a NaN, as JSON encoders write it; the model refuses it by name."""
_FIELDS = ("symbols", "numbers", "positions", "cell", "pbc", "charge", "spin", "info", "format", "text")
NO_STRUCTURE = "GET /api/v1/structures lists yours; they are removed after a time."


def read_structure(entry: Any, limits: Limits) -> Structure:
    """A structure from one entry of a body.

    Raises:
        InvalidStructure: it cannot be understood.
        InvalidRequest: it names an uploaded structure and holds one besides.
        NotFound: it names one that the caller does not have.
        StructureTooLarge: it has more than ``limits.max_atoms`` atoms; found before the arrays are built where possible.
    """
    if isinstance(entry, Mapping) and entry.get("structure_id") is not None:
        return _stored(entry, limits)
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


def _stored(entry: Mapping[str, Any], limits: Limits) -> Structure:
    """The uploaded structure that an entry names."""
    identifier = entry["structure_id"]
    if not isinstance(identifier, str):
        raise InvalidRequest(f"`structure_id` has to be a text, and it is {kind_of(identifier)}.", "")
    if given := [name for name in _FIELDS if entry.get(name) is not None]:
        raise InvalidRequest(f"`{given[0]}` and `structure_id` are both given.", "Leave one of them out.")
    structure = (limits.stored or {}).get(identifier)
    if structure is None:
        raise no_structure(identifier)
    _check_size(len(structure), limits)
    return structure


def no_structure(identifier: str) -> NotFound:
    """The error for an id that names nothing, or nothing of the caller's: which of the two nobody learns."""
    return NotFound(cleaned(f"There is no structure {identifier[:80]!r}."), NO_STRUCTURE)


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
