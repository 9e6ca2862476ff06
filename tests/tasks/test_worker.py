"""Tasks with a worker that lives: results, progress, cancelling, timeouts, failures, retries, callbacks."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Callback, Status
from tests.tasks.worker import relax
from tests.tasks.workers import Bench, all_events, completed, finished, reaches, submit, until


class InProcess:
    """A context without a queue: the calculation from beginning to end."""

    def progress(self, step: object) -> None:
        """Nobody looks."""

    def checkpoint(self, _: str) -> None:
        """Nothing is kept."""

    state = checkpoint


def test_a_relaxation_gives_what_it_gives_in_process(served: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        view = await completed(tasks, (await submit(tasks, "relax", {"seed": 3})).id)
        assert view.result == relax({"seed": 3}, InProcess())  # type: ignore[arg-type]
        assert view.progress is not None
        # The last step is there although most were left out.
        assert view.progress["energy"] == view.result["energy"]
        assert view.progress["steps_seen"] == view.result["steps"] + 1
        assert (view.attempt, view.position, view.error) == (1, None, None)
        assert view.created <= (view.started or 0) <= (view.finished or 0)
        events = await all_events(tasks, view.id)
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert [event.data["status"] for event in events if event.name == "status"] == ["QUEUED", "RUNNING", "COMPLETED"]
        assert await all_events(tasks, view.id, after=2) == events[2:], "a reader goes on where it stopped"

    served.run(use)


def test_progress_is_told_while_it_happens_and_thinned(served: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "count", {"steps": 300, "pause": 0.01})).id
        seen = [(event, time.time()) async for event in tasks.events(task) if event.name == "progress"]
        assert 2 <= len(seen) <= 3 + 2 * (seen[-1][0].time - seen[0][0].time), "at most two a second"
        assert seen[-1][0].data["step"] == 299
        assert seen[0][0].data["step"] < 299, "the first came before the end"

    served.run(use)


def test_cancelling_ends_a_calculation_within_a_step(served: Bench, tmp_path: Path) -> None:
    diary = tmp_path / "diary"

    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "count", {"steps": 100_000, "pause": 0.05, "diary": str(diary)})).id
        await reaches(tasks, task, 3)
        await tasks.cancel(task)
        assert (await finished(tasks, task)).status is Status.CANCELLED
        made = len(diary.read_text().splitlines())
        await completed(tasks, (await submit(tasks, "count", {"steps": 5, "pause": 0.05})).id)
        assert len(diary.read_text().splitlines()) == made, "it does not go on behind the answer"

    served.run(use)


def test_a_force_call_that_hangs_keeps_nobody_from_cancelling(served: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "hang", {"seconds": 20})).id
        await reaches(tasks, task, 1)
        asked = time.monotonic()
        await tasks.cancel(task)
        assert (await finished(tasks, task)).status is Status.CANCELLED
        assert time.monotonic() - asked < 19, "the call had not come back by then"

    served.run(use)


def test_timeout_counts_from_the_start_and_a_retry_gets_it_anew(served: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "count", {"steps": 60, "pause": 0.05}, timeout_seconds=1)).id
        view = await finished(tasks, task)
        assert view.status is Status.TIMEOUT
        assert view.error is not None
        assert "timeout" in view.error["detail"]
        assert (view.finished or 0) - (view.started or 0) >= 1
        again = await tasks.retry(task)
        assert again.started is None
        assert (await finished(tasks, task)).attempt == 2

    served.run(use)


def test_failures_are_told_and_a_retry_goes_on(served: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def use(tasks: DurableTasks) -> None:
        typed = (await submit(tasks, "fail", {"gate": str(gate)})).id
        view = await finished(tasks, typed)
        assert view.status is Status.FAILED
        assert view.error is not None
        assert (view.error["code"], view.error["detail"]) == ("invalid_structure", "There is an atom too many.")
        begun, *others = await tasks.logs(typed)
        assert begun == f"Attempt 1 begins on worker {view.worker}."
        assert others == ["about to fail", "Failed: There is an atom too many."]
        unforeseen = await finished(tasks, (await submit(tasks, "fail", {"how": "unforeseen"})).id)
        assert unforeseen.error is not None
        assert "ZeroDivisionError" in unforeseen.error["detail"]
        unknown = await finished(tasks, (await submit(tasks, "alchemy", {})).id)
        assert unknown.status is Status.FAILED
        gate.touch()
        await tasks.retry(typed)
        assert (await completed(tasks, typed)).result == {"done": True}

    served.run(use)


def test_a_model_that_comes_back_in_time_fails_nothing(served: Bench, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "fail", {"how": "absent", "gate": str(gate)})).id
        async for event in tasks.events(task):
            if event.name == "log" and "Going on in" in event.data["text"]:
                break
        gate.touch()
        view = await completed(tasks, task)
        assert view.attempt == 1, "it was tried again inside of the attempt"
        never = await finished(tasks, (await submit(tasks, "fail", {"how": "absent"})).id)
        assert never.error is not None
        assert (never.status, never.error["code"]) == (Status.FAILED, "server_unavailable"), "patience ends"

    served.run(use)


def test_finished_parts_are_not_worked_out_again(served: Bench, tmp_path: Path) -> None:
    diary = tmp_path / "diary"

    async def use(tasks: DurableTasks) -> None:
        task = (await submit(tasks, "parts", {"parts": 12, "pause": 0.1, "diary": str(diary)})).id
        await reaches(tasks, task, 3)
        await tasks.cancel(task)
        await finished(tasks, task)
        await tasks.retry(task)
        view = await completed(tasks, task)
        assert view.result == {"parts": [{"number": number} for number in range(12)]}
        # One of them may have been worked out and not kept when the task was cancelled.
        assert len(diary.read_text().split()) <= 13

    served.run(use)


class Listener(BaseHTTPRequestHandler):
    """Notes what arrives; the first call of each task is answered with an error."""

    calls: list[tuple[dict[str, str], bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        task = json.loads(body)["task_id"]
        first = all(json.loads(other)["task_id"] != task for _, other in self.calls)
        self.calls.append((dict(self.headers), body))
        self.send_response(503 if first else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def listening() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A server on a free port, and what it was sent."""
    calls: list[tuple[dict[str, str], bytes]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Noting", (Listener,), {"calls": calls}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_callbacks_are_signed_and_tried_again(served: Bench) -> None:
    async def use(tasks: DurableTasks) -> None:
        with listening() as (url, calls):
            task = (await submit(tasks, "count", {}, callback=Callback(url, secret="a secret"))).id
            await completed(tasks, task)
            await asyncio.to_thread(until, lambda: len(calls) == 2)
            for headers, body in calls:
                expected = "sha256=" + hmac.new(b"a secret", body, hashlib.sha256).hexdigest()
                assert headers["X-Forcegate-Signature"] == expected
            told = [json.loads(body) for _, body in calls]
            assert told[0] == told[1], "the second try of one delivery"
            assert (told[0]["task_id"], told[0]["status"]) == (task, "COMPLETED")

    served.run(use)


def test_a_name_that_stands_for_this_machine_is_not_called() -> None:
    # Names are looked at when they are called: what they stood for before says nothing.
    from frontend.tasks.callbacks import Refused, post

    with listening() as (url, calls):
        for name in ("localhost", "127.1", "0x7f000001", "2130706433"):
            with pytest.raises(Refused):
                post(url.replace("127.0.0.1", name), b"{}", {}, private=False)
        assert not calls
