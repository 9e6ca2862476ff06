"""Results as plain values for JSON."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from ase import Atoms

from forcegate.structure import from_atoms, to_mapping


class Answer:
    """Base of the results; subclasses are frozen dataclasses whose field names are those of the REST answer."""

    def as_dict(self) -> dict[str, Any]:
        """The result as values that JSON has: arrays as lists, structures as in a request, and None for what is not finite."""
        return {field.name: plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


def plain(value: Any) -> Any:
    """``value`` as JSON has it."""
    if isinstance(value, Answer):
        return value.as_dict()
    if isinstance(value, Atoms):
        return to_mapping(from_atoms(value))
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
