"""The worker's process: ``python -m frontend.tasks.worker`` with the settings in FORCEGATE_* variables.

It takes tasks from the queue and carries them out in threads, dozens at once, so that their force calls meet in Triton's batches.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import sqlalchemy as sa

from forcegate import jsonlog
from forcegate.errors import ForcegateError, SetupError, UnsupportedTask
from frontend import settings as all_settings
from frontend.settings import Settings
from frontend.tasks.attempt import Attempt, Reason
from frontend.tasks.callbacks import Deliveries
from frontend.tasks.context import Context, Ended
from frontend.tasks.engine import Consumer, Entries
from frontend.tasks.identity import identity
from frontend.tasks.kinds import KINDS
from frontend.tasks.leases import Leases
from frontend.tasks.ledger import Ledger
from frontend.tasks.queue import open_database, opening
from frontend.tasks.residency import Holder, Resident
from frontend.tasks.task import Status
from frontend.tasks.worker_metrics import WorkerMetrics, exported
from frontend.tracing import Tracing

log = logging.getLogger(__name__)

PULSE_SECONDS = 0.25
"""How often a worker looks for cancellations and tells of progress."""
ABANDON_SECONDS = 5.0
"""A calculation that has not ended so long after it should is waited for no longer: its task ends without it."""
CALLBACK_SECONDS = 1.0
RETENTION_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Pauses before a calculation whose model was not there goes on, in s; they double from the first to the longest."""


class Kind(Protocol):
    """A kind of task."""

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        """Carries out the calculation; the answer is JSON."""


class Worker:
    """One worker: takes tasks, keeps its leases, takes over the tasks of the dead, and makes callbacks."""

    def __init__(self, settings: Settings, kinds: Mapping[str, Kind], name: str) -> None:
        self._settings, self._kinds, self.name = settings, kinds, name
        self._engine = open_database(settings, settings.task_concurrency + 8, durable=False)
        self._entries = Entries(self._engine)
        with opening():
            self._entries.open()
        self._ledger = Ledger(self._engine, self._entries, settings.task_lease_seconds)
        self._leases = Leases(self._ledger, settings, name)
        self._deliveries = Deliveries(self._engine, settings.callback_private, self._ledger.clock)
        self._consumer = Consumer(self._engine, name, settings.task_concurrency, self._carry_out)
        self._holder = Holder(settings.state) if settings.scheduler == "on" else None
        self._resident = Resident(settings.grpc_address, self._holder)
        self._tracing = Tracing(settings.traces_url, "worker", ca=settings.traces_ca) if settings.traces else None
        self._attempts: dict[str, Attempt] = {}
        self._lock = threading.Lock()
        self._metrics = WorkerMetrics(settings.task_concurrency, self._running)
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=job, name=job[0].__name__, daemon=True)
            for job in (
                (self._pulse, PULSE_SECONDS),
                (self._beat, settings.task_beat_seconds),
                (self._call_back, CALLBACK_SECONDS),
                (self._remove_old, RETENTION_SECONDS),
            )
        ]

    def run(self, stop: threading.Event) -> None:
        """Works until ``stop`` is set; what is running then goes back into the queue with its last state."""
        self._leases.beat()
        self._metrics.beat.set_to_current_time()
        count = self._leases.take_over(self.name)
        self._entries.declare(self._settings.task_concurrency, self._settings.task_poll_seconds)
        self._consumer.start()
        for thread in self._threads:
            thread.start()
        log.info("worker is ready", extra={"worker": self.name, "slots": self._settings.task_concurrency, "taken_back": count})
        with exported(self._settings, self._metrics):
            stop.wait()
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        for attempt in self._running():
            attempt.end(Reason.STOPPED)
        self._consumer.stop(max(1, round(self._settings.drain_seconds)))
        self._closed.set()
        # What has not ended by now, perhaps in a force call that hangs, is fenced by this: it can write no more.
        for attempt in self._running():
            self._leases.give_back(attempt)
        self._leases.take_over(self.name)
        self._leases.leave()
        if self._tracing is not None:
            self._tracing.close()
        log.info("worker has stopped", extra={"worker": self.name})

    def _running(self) -> list[Attempt]:
        with self._lock:
            return list(self._attempts.values())

    def _carry_out(self, task: str, dispatch: int) -> None:
        """One entry of the queue, in a thread of its own."""
        if self._stopping.is_set():
            self._persist(lambda: self._leases.return_entry(task, dispatch))
            return
        attempt = self._persist(lambda: self._leases.turn(task, dispatch, self._resident))
        if attempt is None:
            return
        attempt.holder = self._holder
        before = f", before {attempt.before} whose models would have to be loaded" if attempt.before else ""
        attempt.log(f"Attempt {attempt.number} begins on worker {self.name}{before}.")
        with self._lock:
            self._attempts[task] = attempt
        if self._stopping.is_set():
            attempt.end(Reason.STOPPED)
        try:
            if self._tracing is None or not attempt.asked_by:
                self._attempt(attempt)
            else:
                self._tracing.task(attempt, self._attempt)
        finally:
            with self._lock:
                if self._attempts.get(task) is attempt:
                    del self._attempts[task]

    def _attempt(self, attempt: Attempt) -> str:
        """Carries an attempt out and writes how it ended; the code of its error, or the reason of an early end."""
        try:
            result = self._calculate(attempt)
        except Ended:
            self._ended(attempt)
        except ForcegateError as error:
            self._failed(attempt, error)
            return attempt.reason or error.code
        except Exception as error:
            log.exception("a calculation failed", extra={"task": attempt.task})
            self._failed(attempt, ForcegateError(f"The calculation failed: {type(error).__name__}: {error}"))
            return attempt.reason or ForcegateError.code
        else:
            attempt.log(f"Completed after {attempt.steps} steps and {time.monotonic() - attempt.claimed:.1f} s of this attempt.")
            self._persist(lambda: self._leases.finish(attempt, Status.COMPLETED, result=result))
        return attempt.reason or ""

    def _calculate(self, attempt: Attempt) -> dict[str, Any]:
        """Runs the calculation, and again from its last state where a model was not there, until patience ends."""
        if (kind := self._kinds.get(attempt.kind)) is None:
            raise UnsupportedTask(f"This worker does not know tasks of the kind {attempt.kind!r}.", "Run workers of one version.")
        pause, steps, since = FIRST_PAUSE, attempt.steps, time.monotonic()
        while True:
            attempt.check()
            try:
                return kind.run(attempt.parameters, attempt)
            except ForcegateError as error:
                if not error.retryable:
                    raise
                if attempt.steps > steps:
                    pause, steps, since = FIRST_PAUSE, attempt.steps, time.monotonic()
                if time.monotonic() + pause - since > self._settings.task_patience_seconds:
                    raise
                attempt.log(f"{error.detail} Going on in {pause:.0f} s.")
            attempt.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _ended(self, attempt: Attempt) -> None:
        """Writes the end of an attempt that had to stop."""
        reason = attempt.reason
        if reason is Reason.STOPPED:
            attempt.log("The worker stops; the task goes back into the queue with its last state.")
            self._persist(lambda: self._leases.give_back(attempt))
        elif reason is Reason.CANCELLED:
            attempt.log("Cancelled.")
            self._persist(lambda: self._leases.finish(attempt, Status.CANCELLED))
        elif reason is Reason.TIMEOUT:
            error = ForcegateError("The task was not finished within its timeout.", "Retry it: it goes on from its last state.")
            attempt.log(error.detail)
            self._persist(lambda: self._leases.finish(attempt, Status.TIMEOUT, error={**error.as_dict(), "code": "timeout"}))

    def _failed(self, attempt: Attempt, error: ForcegateError) -> None:
        if attempt.reason is not None:  # what has to end may fail on its way
            self._ended(attempt)
        else:
            attempt.log(f"Failed: {error.detail}")
            self._persist(lambda: self._leases.finish(attempt, Status.FAILED, error=error.as_dict()))

    def _persist(self, write: Callable[[], Any]) -> Any:
        """``write()``, tried again while the database is away. A worker that ends meanwhile leaves its tasks to the others."""
        pause = 0.2
        while True:
            try:
                return write()
            except sa.exc.OperationalError as error:
                log.warning("the database is away", extra={"detail": str(error.orig)})
                if self._closed.wait(pause):
                    raise
                pause = min(2 * pause, 5.0)

    def _repeat(self, job: Callable[[], None], seconds: float) -> None:
        while not self._closed.wait(seconds):
            try:
                job()
            except Exception:  # one of these threads that ended would be missed by nobody
                log.exception("a job failed", extra={"job": job.__name__})

    def _pulse(self) -> None:
        attempts = self._running()
        self._leases.confirm(attempts)
        self._leases.report(attempts)
        for attempt in attempts:
            ending = attempt.reason in (Reason.CANCELLED, Reason.TIMEOUT)
            if ending and time.monotonic() - attempt.ended_at > ABANDON_SECONDS:
                self._ended(attempt)

    def _beat(self) -> None:
        self._leases.beat()
        self._metrics.beat.set_to_current_time()
        self._leases.sweep()

    def _call_back(self) -> None:
        due = self._deliveries.due()
        if due:
            with ThreadPoolExecutor(8, thread_name_prefix="callback") as threads:
                list(threads.map(self._deliveries.deliver, due))

    def _remove_old(self) -> None:
        while self._leases.remove_old() and not self._closed.is_set():
            pass


def run(settings: Settings, kinds: Mapping[str, Kind]) -> None:
    """Runs a worker in this process until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with identity(settings.state) as name:
        Worker(settings, kinds, name).run(stop)


def main() -> int:
    """Works until it is told to stop. Returns the exit status."""
    try:
        settings = all_settings.load()
        jsonlog.configure(settings.log_level, process="worker")
        run(settings, KINDS)
    except SetupError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    with suppress(Exception):
        logging.shutdown()
    # A calculation that hangs in a force call has a thread that nothing ends; the interpreter would wait for it.
    os._exit(status)
