"""Which dispersion correction belongs to a model: the rule that gateway and calculator share.

A model's policy says what was in its training data. ``allowed`` and ``recommended`` models were trained on a functional without
dispersion, so that D3(BJ) with its damping may be added. ``included`` ones have it in their numbers already: adding it would count
it twice. ``forbidden`` and ``none`` ones cannot take it.
"""

from __future__ import annotations

import re
from typing import Protocol

from forcegate.errors import DispersionNotSupported, InvalidRequest

CHOICES = ("auto", "none", "d3bj")
"""``auto`` adds the correction where the model's policy recommends it."""

UNCORRECTED = frozenset(("energies",))
"""Outputs that are left out where a correction is added: it has none for each atom, and these would not sum to ``energy``."""

DAMPINGS = ("pbe", "r2scan", "pbesol", "rpbe", "revpbe", "scan", "blyp", "b3lyp", "pbe0", "hse06")
"""Functionals with a served correction, ``d3bj-<name>`` (forcefields/dftd3)."""


def choice(asked: str) -> str:
    """``asked`` itself.

    Raises:
        InvalidRequest: it is none of ``CHOICES``.
    """
    if asked not in CHOICES:
        raise InvalidRequest(f"dispersion={asked!r} is not known.", f"It is one of {', '.join(CHOICES)}.")
    return asked


def correction(model: str, policy: str, functional: str, asked: str) -> str | None:
    """The served model whose answers are to be added, or None for no correction.

    Args:
        model: name of the force field, for the message.
        policy: its policy (``none``, ``allowed``, ``recommended``, ``included``, ``forbidden``), for the head that is used.
        functional: the functional of that head, such as ``PBE(+U)``.
        asked: one of ``CHOICES``.

    Raises:
        DispersionNotSupported: D3 was asked for, and adding it would be wrong. It is never left out in silence.
    """
    if asked == "none" or (asked == "auto" and policy != "recommended"):
        return None
    if policy == "included":
        raise DispersionNotSupported(
            f"{model} was trained on energies that hold dispersion ({functional}): adding D3 would count it twice.",
            'Ask with "dispersion": "none" or "auto".',
        )
    if policy not in ("allowed", "recommended"):
        raise DispersionNotSupported(
            f"No dispersion correction belongs to {model} ({functional}).", 'Ask with "dispersion": "none".'
        )
    damping = damping_of(functional)
    if damping is None:
        raise DispersionNotSupported(
            f"There is no D3(BJ) damping here for the functional of {model}, {functional}.",
            f"There is one for {', '.join(DAMPINGS)}.",
        )
    return f"d3bj-{damping}"


class Described(Protocol):
    """What a catalogue or a service says of a model."""

    @property
    def default_head(self) -> str:
        """The head that is used where none is named; empty for a model without heads."""

    def dispersion_of(self, head: str) -> str:
        """The policy of a head."""

    def functional_of(self, head: str) -> str:
        """The functional of a head."""


def correction_of(model: str, described: Described, head: str | None, asked: str) -> str | None:
    """``correction`` of a model for one of its heads, the default one where ``head`` is None or empty."""
    used = head or described.default_head
    return correction(model, described.dispersion_of(used), described.functional_of(used), asked)


def damping_of(functional: str) -> str | None:
    """The name in ``DAMPINGS`` that a functional such as ``PBE(+U), VASP 54 potentials`` begins with."""
    found = re.match(r"[A-Za-z0-9]+", functional)
    name = found.group().lower() if found else ""
    return name if name in DAMPINGS else None
