"""What a killed supervisor has left is ended; what has a living supervisor, another folder or none is left alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from frontend.supervisor import remains

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"


@contextmanager
def process(**variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that SIGTERM does not end."""
    started = subprocess.Popen([sys.executable, "-c", DEAF], env=variables, stdout=subprocess.PIPE)
    try:
        assert started.stdout is not None
        started.stdout.readline()
        yield started
    finally:
        started.kill()
        started.wait()
        started.stdout.close()  # type: ignore[union-attr]


def dead() -> str:
    """The signature of a supervisor that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{ended.pid}:{psutil.Process().create_time()}"


def test_what_is_left_is_ended_and_nothing_else(tmp_path: Path) -> None:
    mine, state = remains.signature(), str(tmp_path.resolve())
    told: list[str] = []
    with (
        process(FORCEGATE_STATE=state, FORCEGATE_SUPERVISOR=dead()) as left,
        process(FORCEGATE_STATE=state, FORCEGATE_SUPERVISOR=mine.split(":")[0] + ":1.0") as of_an_earlier_one_of_this_id,
        process(FORCEGATE_STATE=state, FORCEGATE_SUPERVISOR=mine) as supervised,
        process(FORCEGATE_STATE=state) as alone,
        process(FORCEGATE_STATE=str(tmp_path / "other"), FORCEGATE_SUPERVISOR=dead()) as elsewhere,
    ):
        assert remains.end(tmp_path, told.append, 0.2) == 2
        assert not any(psutil.pid_exists(each.pid) for each in (left, of_an_earlier_one_of_this_id))
        assert [each.poll() for each in (supervised, alone, elsewhere)] == [None] * 3
        assert told == ["waiting for 2 processes of a service that was killed"]
        assert remains.end(tmp_path, told.append) == 0


def test_it_waits_for_what_ends_by_itself(tmp_path: Path) -> None:
    script = f"import time; print('here', flush=True); time.sleep(0.5); open({str(tmp_path / 'done')!r}, 'w')"
    variables = {"FORCEGATE_STATE": str(tmp_path.resolve()), "FORCEGATE_SUPERVISOR": dead()}
    ending = subprocess.Popen([sys.executable, "-c", script], env=variables, stdout=subprocess.PIPE)
    with ending:
        assert ending.stdout is not None
        ending.stdout.readline()
        assert remains.end(tmp_path, lambda _: None) == 1
        assert (tmp_path / "done").exists()
