"""What the parameters of all calculations share: they are checked when they are made, and complain with ``InvalidRequest``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Self

from forcegate.errors import InvalidRequest


class Parameters:
    """Base of the parameters of a calculation; subclasses are frozen dataclasses that check themselves."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Parameters from the fields of a request.

        Raises:
            InvalidRequest: there is no parameter of that name, or its value cannot be used.
        """
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                raise InvalidRequest(
                    f"There is no parameter {str(name)[:60]!r}.",
                    f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}.",
                )
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> None:
    """Checks a finite number with ``low <= value <= high`` and ``value > above``.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise InvalidRequest(f"`{name}` has to be a number, not {str(value)[:40]!r}.", "")
    if not (low <= float(value) <= high and float(value) > above):
        raise InvalidRequest(f"`{name}` is {value}, which is out of range.", f"It has to be {_range(low, high, above)}.")


def integer(name: str, value: Any, low: int, high: int) -> None:
    """Checks an integer with ``low <= value <= high``.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InvalidRequest(f"`{name}` has to be a whole number, not {str(value)[:40]!r}.", "")
    number(name, value, low, high)


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Checks that ``value`` is among ``choices``.

    Raises:
        InvalidRequest: it is not.
    """
    if value not in choices:
        listed = ", ".join(str(choice) for choice in choices)
        raise InvalidRequest(f"`{name}` is {str(value)[:40]!r}, which is not known.", f"It is one of {listed}.")


def flag(name: str, value: Any) -> None:
    """Checks a bool.

    Raises:
        InvalidRequest: it is none.
    """
    if not isinstance(value, bool):
        raise InvalidRequest(f"`{name}` has to be true or false, not {str(value)[:40]!r}.", "")


def _range(low: float, high: float, above: float) -> str:
    parts = [f"above {above:g}"] if above > low else [f"at least {low:g}"] if low > -math.inf else []
    return " and ".join([*parts, *([f"at most {high:g}"] if high < math.inf else [])])
