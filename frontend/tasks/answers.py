"""Tasks as answers of the gateway have them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from forcegate.errors import Conflict, DeadlineExceeded, ForcegateError, TaskNotFinished, from_mapping
from frontend.tasks.task import Status, View


def accepted(view: View) -> dict[str, Any]:
    """What is said of a task when it is accepted."""
    return {
        "task_id": view.id,
        "status": view.status.value,
        "priority": view.priority.value,
        "position": view.position,
        "estimated_wait_seconds": view.estimated_wait_seconds,
    }


def described(view: View) -> dict[str, Any]:
    """All that is known of a task but its result."""
    return accepted(view) | {
        "kind": view.kind,
        "models": list(view.models),
        "user": view.user,
        "created_at": moment(view.created),
        "started_at": moment(view.started),
        "finished_at": moment(view.finished),
        "attempt": view.attempt,
        "worker": view.worker,
        "progress": view.progress,
        "error": view.error,
    }


def result_of(view: View) -> dict[str, Any]:
    """The result of a task.

    Raises:
        TaskNotFinished: it has none yet, or was cancelled.
        ForcegateError: the error that the task ended with.
    """
    if view.status is Status.COMPLETED:
        return (view.result or {}) | {"task_id": view.id}
    if not view.status.final:
        raise TaskNotFinished(f"The task {view.id} is {view.status.value} and has no result yet.")
    raise error_of(view)


def error_of(view: View) -> ForcegateError:
    """Why a task that is final has no result."""
    known = from_mapping(view.error) if view.error else None
    if view.status is Status.CANCELLED:
        return TaskNotFinished(f"The task {view.id} was cancelled.", "POST /api/v1/tasks/{id}/retry goes on with it.")
    if view.status is Status.TIMEOUT:
        return DeadlineExceeded(
            known.detail if known else f"The task {view.id} took longer than its `timeout_seconds`.",
            "Retry it: it goes on where it was. Or allow more time.",
        )
    if known is None:
        return Conflict(f"The task {view.id} failed: {(view.error or {}).get('detail', 'its error is not known')}.", "")
    return known


def moment(seconds: float | None) -> str | None:
    """A time as answers tell it, UTC; ``seconds`` since the epoch."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
