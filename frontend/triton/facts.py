"""What a loaded model vouches for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a loaded model vouches for: the parameters of its Triton configuration, verified by the model itself on load.

    Attributes:
        arithmetic: what the numbers are computed with, by the model's report, since it is the model that finds out; empty where the
            gateway cannot read reports.
    """

    model: str
    package: str
    package_version: str
    checkpoint_sha256: str
    functional: str
    head_functionals: tuple[tuple[str, str], ...]
    training_data: str
    heads: tuple[str, ...]
    default_head: str
    dtype: str
    extra_outputs: tuple[str, ...]
    dispersion: str
    head_dispersion: tuple[tuple[str, str], ...]
    licence: str
    arithmetic: tuple[tuple[str, str | bool], ...] = ()

    def dispersion_of(self, head: str) -> str:
        """The dispersion policy of ``head``; the model's own where heads do not differ in it."""
        return dict(self.head_dispersion).get(head, self.dispersion)

    def functional_of(self, head: str) -> str:
        """The functional that ``head`` was trained on; the model's own where heads do not differ in it."""
        return dict(self.head_functionals).get(head, self.functional)

    @classmethod
    def from_config(cls, model: str, config: Mapping[str, Any]) -> Facts:
        """The facts in the JSON form of ``config.pbtxt``.

        Raises:
            KeyError: a parameter is missing, so this is not a model of ours.
        """
        values = {name: value.get("string_value", "") for name, value in config["parameters"].items()}
        return cls(
            model=model,
            package=values["package"],
            package_version=values["package_version"],
            checkpoint_sha256=values["checkpoint_sha256"],
            functional=values["functional"],
            head_functionals=tuple(json.loads(values.get("head_functionals") or "{}").items()),
            training_data=values["training_data"],
            heads=_words(values.get("heads", "")),
            default_head=values.get("default_head", ""),
            dtype=values["dtype"],
            extra_outputs=_words(values.get("extra_outputs", "")),
            dispersion=values["dispersion"],
            head_dispersion=tuple(json.loads(values.get("head_dispersion") or "{}").items()),
            licence=values["licence"],
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
