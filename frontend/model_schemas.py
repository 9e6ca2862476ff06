"""The shapes of what is told of models, and of a request to load one: documentation alone, as frontend/schemas.py is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from frontend.schemas import Error, words
from frontend.triton.directory import STATES

SOURCES = ("package", "family", "download", "tiny", "own")
NEEDS = ("download", "token", "licence")


class ModelCard(BaseModel):
    """One model."""

    name: str
    service: str = Field(description="Its family.")
    url: str = Field(description="Its page of this API.")
    state: Annotated[str, words(list(STATES))]
    error: Error | None = Field(description="Why it is not ready.")
    summary: str
    aliases: list[str] = Field(description="Other names that mean this model.")
    elements: list[str] = Field(description="Elements that it was trained on.")
    heads: list[str]
    default_head: str | None
    outputs: list[str]
    functional: str
    head_functionals: dict[str, str] = Field(description="Functional by head.")
    training_data: str
    cutoff: float = Field(description="A, radius of its neighbour graph.")
    dtype: str = Field(description="Floating-point type that it runs in, or would run in by default.")
    dtypes: list[str] = Field(description="Those that it can be loaded in.")
    direct_forces: bool = Field(description="Whether forces are predicted and not the gradient of the energy.")
    uses_charge: bool
    uses_spin: bool
    dispersion: str = Field(description="Dispersion policy: none, allowed, recommended, included or forbidden.")
    licence: str
    source: Annotated[str, words(list(SOURCES))] = Field(
        description="Where its weights come from: the installed `package`, this repository (`family`), a `download`, "
        "made on the spot (`tiny`), or the user's `own` file."
    )
    needs: list[Annotated[str, words(list(NEEDS))]] = Field(
        description="What has to be done before it can be loaded, by `forcegate export`: a `download`, with a `token` of the hub, "
        "after a `licence` has been accepted. Empty for what can be loaded now."
    )
    package: str
    package_version: str
    reference: str = Field(description="What to cite.")
    checkpoint: str = Field(description="File name of its weights.")
    checkpoint_sha256: str | None = Field(description="Null until the first copy has been placed, where nobody publishes a hash.")
    device: str | None
    memory_usage_mb: int | None
    load_seconds: float | None
    gate: dict[str, Any] | None = Field(description="What its readiness gate measured when it was loaded.")


class LoadRequest(BaseModel):
    """How a model is to be loaded. The body may be left out."""

    dtype: str | None = Field(
        None, description="One of the model's `dtypes`; when left out, the one that it is loaded in, or else its own default."
    )


class ModelList(BaseModel):
    """All models."""

    total: int
    ready: int
    models: list[ModelCard]
