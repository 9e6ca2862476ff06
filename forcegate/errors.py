"""Typed errors, shared by the models, the gateway and the clients.

Each error states its code, its HTTP status and whether trying the same call again can help. An error crosses Triton as one
line of text (``to_wire``), because Triton has nothing else for it, and comes back as the same type (``from_wire``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class ForcegateError(Exception):
    """Base of all errors that a user may see.

    Args:
        detail: what is wrong, a sentence that a person can act on.
        hint: what to do next; the class's ``default_hint`` when not given.
    """

    code: ClassVar[str] = "forcegate_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""
    retry_after: int | None = None
    """Seconds after which trying again should help, where it is known; the gateway sends them as Retry-After."""

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = self.default_hint if hint is None else hint
        self.request_id = ""
        """Finds the request in the logs of the gateway and of the model; the clients fill it in."""

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}".strip()

    def as_dict(self) -> dict[str, object]:
        """The body of a REST error answer."""
        return {"detail": self.detail, "code": self.code, "retryable": self.retryable, "hint": self.hint}

    def to_wire(self) -> str:
        """One line that carries this error through Triton: ``code: detail | hint: ...``."""
        line = f"{self.code}: {self.detail}" + (f" | hint: {self.hint}" if self.hint else "")
        return " ".join(line.split())


class InvalidRequest(ForcegateError):
    """The body cannot be read: not JSON, a field missing, a wrong type."""

    code, status = "invalid_request", 400
    default_hint = "Compare the body with the schema at /docs."


class UnsupportedMediaType(InvalidRequest):
    """The body is in a format that the endpoint does not read."""

    code = "unsupported_media_type"
    default_hint = "Send application/json or application/msgpack."


class UnsupportedTask(InvalidRequest):
    """The calculation is not served, or not in this combination."""

    code, status = "unsupported_task", 422
    default_hint = "Ask for `single_point`."


class BodyTooLarge(ForcegateError):
    """The request body is longer than the gateway accepts."""

    code, status = "body_too_large", 413
    default_hint = "Send fewer structures in one request, or use gRPC."


class InvalidStructure(ForcegateError):
    """The structure cannot be understood: shapes that do not fit, an unknown symbol, a file that does not parse."""

    code, status = "invalid_structure", 422


class EmptyStructure(InvalidStructure):
    """The structure has no atoms."""

    code = "empty_structure"
    default_hint = "Send at least one atom."


class NonFiniteInput(InvalidStructure):
    """A position, a cell vector or the charge is NaN or infinite."""

    code = "non_finite_input"
    default_hint = "Check the file for NaN, Inf or missing coordinates."


class UnsupportedElement(InvalidStructure):
    """The structure holds an element that the model was not trained on."""

    code = "unsupported_element"
    default_hint = "Choose a model whose elements (GET /api/v1/models) cover the structure."


class CoincidentAtoms(InvalidStructure):
    """Two atoms, or an atom and a periodic image, are nearer than 0.1 A."""

    code = "coincident_atoms"
    default_hint = "Remove the duplicate atom, or check that the cell belongs to the positions."


class InvalidCell(InvalidStructure):
    """The cell does not fit the periodic directions: missing, flat or collapsed."""

    code = "invalid_cell"
    default_hint = "Give independent lattice vectors for every periodic direction, or set pbc to false there."


class StructureTooLarge(ForcegateError):
    """The structure has more atoms or neighbour pairs than the model takes on this device."""

    code, status = "structure_too_large", 413
    default_hint = "Use a smaller cell, or a device with more memory."


class UnknownHead(ForcegateError):
    """The model has no head of that name."""

    code, status = "unknown_head", 422


class UnsupportedDtype(ForcegateError):
    """The model cannot be evaluated in that floating-point type."""

    code, status = "unsupported_dtype", 422
    default_hint = "Choose one of the model's dtypes; GET /api/v1/models lists them."


class ChargeNotSupported(ForcegateError):
    """A nonzero charge was given to a model that would ignore it."""

    code, status = "charge_not_supported", 422
    default_hint = "Use a model that was trained on charged systems, or leave the charge out."


class SpinNotSupported(ForcegateError):
    """A spin multiplicity was given to a model that would ignore it."""

    code, status = "spin_not_supported", 422
    default_hint = "Use a model that was trained with spin, or leave it out."


class UnsupportedOutput(ForcegateError):
    """An output was asked for that the model does not have."""

    code, status = "unsupported_output", 422


class DispersionNotSupported(ForcegateError):
    """Dispersion was asked for where it cannot be added."""

    code, status = "dispersion_not_supported", 422


class EvaluationFailed(ForcegateError):
    """The package raised an error on this structure alone."""

    code, status = "evaluation_failed", 422
    default_hint = "Other structures are not affected; the model's log has the traceback under this request id."


class NonFiniteResult(ForcegateError):
    """The model answered NaN or infinity for this structure."""

    code, status = "non_finite_result", 422
    default_hint = "The structure is probably far outside what the model was trained on: check distances and cell."


class OutOfMemory(ForcegateError):
    """The structure alone does not fit into the device's memory."""

    code, status = "out_of_memory", 413
    default_hint = "Use a smaller cell, or a device with more memory."


class FitFailed(ForcegateError):
    """The points of a calculation do not carry the fit that was asked for; ``points`` holds them, by name and unit."""

    code, status = "fit_failed", 422
    default_hint = "Look at the points: widen the range, add points, or relax the structure first."

    def __init__(self, detail: str, hint: str | None = None, points: Mapping[str, Sequence[float]] | None = None) -> None:
        super().__init__(detail, hint)
        self.points = {name: list(values) for name, values in (points or {}).items()}

    def as_dict(self) -> dict[str, object]:
        """The body of a REST error answer, with the points where there are any."""
        return super().as_dict() | ({"points": self.points} if self.points else {})


class NotRelaxed(ForcegateError):
    """A relaxation that the calculation rests on did not converge."""

    code, status = "not_relaxed", 422
    default_hint = "Allow more steps, or relax the structure on its own first."


class Unauthenticated(ForcegateError):
    """The API key is missing, unknown, revoked or expired."""

    code, status = "unauthenticated", 401
    default_hint = (
        "Send one as `Authorization: Bearer KEY`, or set FORCEGATE_API_KEY for this project's clients. "
        "The administrator makes them with `forcegate keys create`."
    )


class Forbidden(ForcegateError):
    """The API key's scope does not cover the request."""

    code, status = "forbidden", 403
    default_hint = "Ask the administrator for a key with that scope."


class NotFound(ForcegateError):
    """No such page or object."""

    code, status = "not_found", 404


class MethodNotAllowed(ForcegateError):
    """The page exists, but not for this HTTP method."""

    code, status = "method_not_allowed", 405


class UnknownModel(NotFound):
    """No model of that name is in the catalogue."""

    code = "unknown_model"
    default_hint = "GET /api/v1/models lists the names and aliases."


class Conflict(ForcegateError):
    """What is asked for does not fit what is there already."""

    code, status = "conflict", 409
    default_hint = "Look at what is there, or choose another key."


class TaskNotFinished(Conflict):
    """The task has no result yet, or none any more to come."""

    code = "task_not_finished"
    default_hint = "Wait for its end: GET /api/v1/tasks/{id} or its events tell of it. A task that was cancelled can be retried."


class CheckpointMissing(ForcegateError):
    """The variant's checkpoint file is not where it should be."""

    code, status = "checkpoint_missing", 409


class CheckpointMismatch(ForcegateError):
    """The bytes of the checkpoint are not the ones that the catalogue vouches for."""

    code, status = "checkpoint_mismatch", 409


class GateFailed(ForcegateError):
    """The loaded model did not pass its readiness gate, so it serves nothing."""

    code, status = "gate_failed", 409


class EnvironmentBroken(ForcegateError):
    """The family's execution environment is missing or does not hold the pinned package."""

    code, status = "environment_broken", 409
    default_hint = "Run `make serve` again: it rebuilds what does not fit."


class ModelNotReady(ForcegateError):
    """The model is known but not loaded, or just being loaded."""

    code, status, retryable = "model_not_ready", 503, True


class NoRoom(ForcegateError):
    """The model needs more memory than any device can ever give it."""

    code, status = "no_room", 409
    default_hint = "Raise FORCEGATE_SCHEDULER_MEMORY_GB, unpin a model, or use a smaller one."


class ModelCrashed(ForcegateError):
    """The model's process ended during the evaluation; it is being brought back."""

    code, status, retryable = "model_crashed", 503, True
    default_hint = "Try again in a few seconds."


class ServerUnavailable(ForcegateError):
    """Triton does not answer; it is being brought back."""

    code, status, retryable = "server_unavailable", 503, True
    default_hint = "Try again in a few seconds."


class Overloaded(ForcegateError):
    """More work is in flight than the gateway accepts."""

    code, status, retryable = "overloaded", 429, True
    default_hint = "Wait for the time in the Retry-After header."


class RateLimited(Overloaded):
    """The API key has sent more requests, or has more structures in flight, than one key may."""

    code = "rate_limited"


class TooManyStructures(ForcegateError):
    """The user has uploaded as many structures as one user may have, or structures that are together as large as that."""

    code, status = "too_many_structures", 429
    default_hint = "Remove some with DELETE /api/v1/structures/{id}; GET /api/v1/structures lists them, the oldest last."


class DeadlineExceeded(ForcegateError):
    """No answer came before the deadline."""

    code, status, retryable = "deadline_exceeded", 504, True
    default_hint = "Allow more time, or send fewer or smaller structures."


class TaskContinues(ForcegateError):
    """The answer did not come in the time that a request may take; the task goes on in the queue. ``task_id`` names it."""

    code, status = "task_continues", 504
    default_hint = "Ask for the task instead of sending the request again: GET /api/v1/tasks/{id}/result."

    def __init__(self, detail: str, hint: str | None = None, task_id: str = "") -> None:
        super().__init__(detail, hint)
        self.task_id = task_id

    def as_dict(self) -> dict[str, object]:
        """The body of a REST error answer, with the id of the task and where it is."""
        named = {"task_id": self.task_id, "status_url": f"/api/v1/tasks/{self.task_id}"}
        return super().as_dict() | (named if self.task_id else {})


class Cancelled(ForcegateError):
    """The caller went away before the answer."""

    code, status = "cancelled", 499
    default_hint = "Send it again if the answer is still wanted."


class SetupError(ForcegateError):
    """The service cannot be set up or started on this machine; the sentence says what to change."""

    code, status = "setup_error", 500


def _tree(base: type[ForcegateError]) -> dict[str, type[ForcegateError]]:
    known = {base.code: base}
    for subclass in base.__subclasses__():
        known |= _tree(subclass)
    return known


BY_CODE: dict[str, type[ForcegateError]] = _tree(ForcegateError)
"""Every error class by its code."""


def from_mapping(body: Mapping[str, Any]) -> ForcegateError | None:
    """The error that ``as_dict`` made ``body`` of, or None where its code is not known here."""
    kind = BY_CODE.get(str(body.get("code")))
    if kind is None:
        return None
    error = kind(str(body.get("detail", "")), str(body.get("hint", "")))
    for name in ("points", "task_id"):
        if name in body and hasattr(error, name):
            setattr(error, name, body[name])
    return error


# One line: Triton adds a traceback of its own after what a model said while it was loading.
_WIRE = re.compile(r"(?P<code>[a-z_]+): (?P<detail>.*?)(?: \| hint: (?P<hint>.*?))?;?$", re.MULTILINE)


def from_wire(text: str) -> ForcegateError | None:
    """The error that a model sent as ``text``, or None when the text is Triton's own."""
    for match in re.finditer(r"\b[a-z_]+: ", text):
        if match.group()[:-2] in BY_CODE and (found := _WIRE.match(text, match.start())):
            return BY_CODE[found["code"]](found["detail"], found["hint"] or "")
    return None
