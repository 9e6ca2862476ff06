"""Licences that somebody has to accept before weights are fetched, and who has accepted which, when."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporters import records
from forcefields.catalogue import Variant
from forcegate.errors import SetupError

RECORD = "consents.json"
"""File in the state folder: the consents, by family and licence."""

MEANING = {
    "ASL": "Academic Software License: academic, non-commercial use alone; the text comes with the weights",
    "FAIR Chemistry License": "with an acceptable use policy: no military, chemical-weapon or illegal use among others; "
    "the text is at https://huggingface.co/facebook/UMA",
}
"""What is said of licences that family.toml calls by name alone."""

Ask = Callable[[Variant], str]
"""Asks whoever runs the export; returns how consent was given (``on the terminal``, ``--accept-licence``), empty for a no."""


def given(state: Path, variant: Variant) -> dict[str, Any] | None:
    """The consent that was given on this machine, or None."""
    found = records.read(state / RECORD).get(_key(variant))
    return found if isinstance(found, dict) else None


def require(state: Path, variant: Variant, ask: Ask) -> None:
    """Makes sure that the licence of a variant's weights is accepted, where it has to be; asked once for each licence.

    Raises:
        SetupError: it is not accepted.
    """
    if not variant.consent or given(state, variant):
        return
    how = ask(variant)
    if not how:
        raise SetupError(
            f"The licence of {variant.name} is not accepted: {terms(variant)}",
            f"Read it, and run `forcegate export {variant.name} --accept-licence` if you do.",
        )
    entry = {
        "licence": variant.licence,
        "consent": variant.consent,
        "given": datetime.now(UTC).isoformat(timespec="seconds"),
        "how": how,
        "for": variant.name,
    }
    records.update(state / RECORD, lambda data: data.update({_key(variant): entry}))


def terms(variant: Variant) -> str:
    """The licence and what has to be accepted in it, for a person to read."""
    text = variant.consent if variant.licence in variant.consent else f"{variant.licence}. {variant.consent}"
    text = f"{text}: {MEANING[text]}" if text in MEANING else text
    return text if text.endswith(".") else f"{text}."


def _key(variant: Variant) -> str:
    # The text is in it: consent to a licence is no consent to what it becomes.
    return f"{variant.family}: {variant.licence}: {variant.consent}"
