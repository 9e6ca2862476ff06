"""The shapes of tasks and of the calculations of the queue, for /docs and openapi.json, beside ``frontend.schemas``.

Requests are the kinds' own parameters with model and structure added. Answers are made of the calculations' own dataclasses, so
that a field cannot be forgotten here.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from forcegate.calculations.answers import Answer
from frontend.requests import MAX_MODELS
from frontend.schemas import AnyAtoms, Atoms, Error, OneStructure, words
from frontend.tasks.kinds import CALCULATIONS, KINDS, Calculation, Kind
from frontend.tasks.submission import CallbackBody, OptionsBody
from frontend.tasks.task import Priority, Status

State = Annotated[str, words([status.value for status in Status])]
Class = Annotated[str, words([priority.value for priority in Priority])]


class TaskState(BaseModel):
    """Where a task is."""

    task_id: str = Field(description="Names the task.")
    status: State = Field(description="COMPLETED, FAILED, CANCELLED and TIMEOUT are final.")
    priority: Class
    position: int | None = Field(description="Place in the queue, 1 is next; null where it does not wait.")
    estimated_wait_seconds: float | None = Field(description="Until it starts; null where it does not wait.")


class TaskAccepted(TaskState):
    """A task that was accepted."""

    status_url: str = Field(description="Where the task is; the header `Location` as well.")
    request_id: str = Field(description="Finds this request in the logs.")


class TaskView(TaskState):
    """A task as it is now."""

    kind: str = Field(description="As in its path.")
    models: list[str]
    user: str
    created_at: str = Field(description="ISO 8601, UTC.")
    started_at: str | None
    finished_at: str | None
    attempt: int = Field(description="1, and one more for each start after the first.")
    worker: str | None
    progress: dict[str, Any] | None = Field(description="The newest step: phase, step, energy (eV), fmax (eV/A) and the like.")
    error: Error | None = Field(description="Why it failed.")


class TaskList(BaseModel):
    """One page of tasks, the newest first."""

    total: int = Field(description="Tasks that the filters let through.")
    tasks: list[TaskView]


class TaskResult(BaseModel):
    """The result of a task: the fields that the same calculation answers when it is waited for."""

    task_id: str


class TaskLogs(BaseModel):
    """What the worker had to tell."""

    task_id: str
    lines: list[str]


class Artifact(BaseModel):
    """One file of a task."""

    name: str
    bytes: int


class Artifacts(BaseModel):
    """The files of a task."""

    task_id: str
    artifacts: list[Artifact]


class Waiting(TaskState):
    """A task that waits."""

    kind: str
    models: list[str]
    waiting_seconds: float = Field(description="Since it was submitted.")


class WaitingClass(BaseModel):
    """What waits at one priority."""

    waiting: int = Field(description="Of those that are listed.")
    tasks: list[Waiting] = Field(description="The next one first.")


class Queue(BaseModel):
    """What waits, and how much runs."""

    waiting: int
    running: int
    listed: int = Field(description="Tasks below; a longer queue is not listed to its end.")
    priorities: dict[str, WaitingClass]


class BatchTaskAnswer(BaseModel):
    """A calculation of the queue for many structures."""

    task: str
    count: int = Field(description="Structures in the request.")
    succeeded: int
    failed: int
    results: list[dict[str, Any]] = Field(description="In the order of the request: `index`, and the answer's fields or `error`.")
    model_name: str
    provenance: dict[str, Any]
    task_id: str


class MultiModelTaskAnswer(BaseModel):
    """A calculation of the queue with several models."""

    task: str
    models_count: int
    results: list[dict[str, Any]] = Field(description="`model`, `status`, and `result` or `error`.")
    comparison: dict[str, Any] = Field(
        description="`models`, `quantities` (values by model, and their spread), `elements_outside`."
    )
    task_id: str


class TaskProvenance(BaseModel):
    """Where a result comes from; see `Provenance`."""

    model: str | None = None
    checkpoint_sha256: str | None = None
    functional: str | None = None
    head: str | None = None
    dispersion: str | None = None


@lru_cache(maxsize=1)
def requests() -> dict[str, type[BaseModel]]:
    """The body of each kind, by its name."""
    return {kind.name: _request(kind) for kind in KINDS.values()}


@lru_cache(maxsize=1)
def results() -> dict[str, type[BaseModel]]:
    """The answer of each calculation that is waited for, by its name."""
    return {kind.name: _result(kind) for kind in CALCULATIONS.values() if kind.answer is not None}


def all_of_them() -> list[type[BaseModel]]:
    """Every schema of this module."""
    written = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    mine = [kind for kind in written if kind.__module__ == __name__]
    return [*mine, OptionsBody, CallbackBody, *requests().values(), *results().values()]


def title_of(name: str) -> str:
    """``BulkModulus`` for ``bulk-modulus``."""
    return "".join(part.capitalize() for part in name.split("-"))


def _request(kind: Kind) -> type[BaseModel]:
    one = Annotated[str, Field(description="Name or alias of a model of GET /api/v1/models.")]
    added: dict[str, Any] = {"options": (OptionsBody | None, Field(None, description="How the task is carried out."))}
    if kind.name == "multi-model":
        added["model_names"] = (list[str], Field(min_length=1, max_length=MAX_MODELS, description="Names or aliases, each once."))
    else:
        added["model_name"] = (one, ...)
    bases: tuple[type[BaseModel], ...] = (kind.parameters, OneStructure)
    if kind.name == "batch":
        added["atoms"] = (list[AnyAtoms], Field(min_length=1))
        bases = (kind.parameters,)
    name = f"{title_of(kind.name)}Task"
    return create_model(name, __base__=bases, __doc__=kind.title, __module__=__name__, **added)


def _result(kind: Calculation) -> type[BaseModel]:
    assert kind.answer is not None
    documented = _attributes(kind.answer)
    made: dict[str, Any] = {}
    for field in fields(kind.answer):  # type: ignore[arg-type]
        made[field.name] = (_json_type(str(field.type)), Field(description=documented.get(field.name, field.name)))
    if kind.name == "optimization":
        made["final_atoms"] = (Atoms, Field(description="The same as `optimized_atoms`."))
    if kind.name == "bulk-modulus":
        made["r_squared"] = (float, Field(description="The same as `fitting_r2`."))
    made |= {"model_name": (str, ...), "provenance": (TaskProvenance, ...), "task_id": (str, Field(description="Of its task."))}
    summary = (inspect.getdoc(kind.answer) or "").split("\n\n")[0]
    return create_model(f"{title_of(kind.name)}Answer", __doc__=summary, __module__=__name__, **made)


def _json_type(annotation: str) -> Any:
    """What ``forcegate.calculations.answers.plain`` makes of a field. A number that is not finite is null."""
    optional = annotation.endswith("| None")
    annotation = annotation.removesuffix("| None").strip()
    if annotation == "float":
        return float | None
    known: dict[str, Any] = {"bool": bool, "int": int, "str": str, "Atoms": Atoms}
    found = known.get(annotation) or (list[Any] if annotation.startswith(("tuple", "np.ndarray")) else dict[str, Any])
    return found | None if optional else found


def _attributes(answer: type[Answer]) -> dict[str, str]:
    """The sentences of a docstring's list of attributes, by the name of each; several names may share one."""
    text = (inspect.getdoc(answer) or "").partition("Attributes:")[2]
    described: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\S)", text):
        names, colon, sentence = entry.strip().partition(": ")
        if colon:
            for name in names.split(", "):
                described[name.strip()] = " ".join(sentence.replace("``", "`").split())
    return described
