"""The watchdog ends a process that hangs, and no other."""

from __future__ import annotations

import subprocess
import sys
import time

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from forcefields.runtime.watchdog import Watchdog
watchdog = Watchdog(0.4)
{body}
print("alive")
"""


def run(body: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    program = PROGRAM.format(root=str(__file__).rpartition("/tests/")[0], body=body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    return done, time.monotonic() - started


def test_a_step_that_holds_the_gil_for_ever_is_ended_and_told() -> None:
    done, seconds = run("with watchdog.watch(1): sum(iter(int, 1))")
    assert done.returncode == 1
    assert "alive" not in done.stdout
    assert "Timeout (0:00:00.5" in done.stderr, "0.4 s and a quarter of it"
    assert "sum" in done.stderr or "line" in done.stderr
    assert seconds < 30


def test_many_short_steps_are_left_alone_for_longer_than_the_limit() -> None:
    done, _ = run("for _ in range(20):\n    with watchdog.watch(1): time.sleep(0.06)")
    assert (done.returncode, done.stdout.strip()) == (0, "alive")


def test_a_process_that_has_nothing_to_do_is_left_alone() -> None:
    done, _ = run("with watchdog.watch(1): time.sleep(0.3)\ntime.sleep(1.5)")
    assert (done.returncode, done.stdout.strip()) == (0, "alive")


def test_a_large_step_gets_more_time_and_a_small_one_after_it_does_not() -> None:
    done, _ = run("with watchdog.watch(1024): time.sleep(0.9)")
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), "four times as many atoms as a limit is meant for"
    done, _ = run("with watchdog.watch(2**20): pass\nwith watchdog.watch(1): time.sleep(5)")
    assert done.returncode == 1, "the clock of a step of half an hour is set back"


def test_a_step_in_another_thread_does_not_shorten_a_longer_one() -> None:
    done, _ = run(
        "import threading\n"
        "def short():\n"
        "    for _ in range(10):\n"
        "        with watchdog.watch(1): time.sleep(0.05)\n"
        "thread = threading.Thread(target=short)\n"
        "with watchdog.watch(1024):\n"
        "    thread.start(); time.sleep(1.0); thread.join()"
    )
    assert (done.returncode, done.stdout.strip()) == (0, "alive")


def test_a_step_that_hangs_beside_one_that_goes_on_is_ended() -> None:
    done, _ = run(
        "import threading\n"
        "def hang():\n"
        "    with watchdog.watch(1): time.sleep(20)\n"
        "threading.Thread(target=hang, daemon=True).start()\n"
        "with watchdog.watch(1): time.sleep(0.1)\n"
        "time.sleep(10)"
    )
    assert done.returncode == 1
