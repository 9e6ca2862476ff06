"""What model processes note of their memory, and how the supervisor reads it: each thing once."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from forcefields.runtime.batch import Tally
from forcefields.runtime.engine import Report
from forcefields.runtime.memory import Memory
from frontend.supervisor.memory import News, Notes

OWN = (os.getpid(),)


def test_what_ran_out_is_told_once_by_size(tmp_path: Path) -> None:
    written, notes = Memory(tmp_path / "m.json", "cpu"), Notes(tmp_path)
    assert notes.news("m", OWN) == News(), "nothing has been written"
    written.observe([Report(tally=Tally(out_of_memory=3, too_large=5000)), Report(tally=Tally(largest_pass=2000))])
    assert notes.news("m", OWN) == News(ran_out=((5000, 1),)), "three passes of one call"
    assert notes.news("m", OWN) == News()
    written.observe([Report(tally=Tally(out_of_memory=1, too_large=6000)), Report(tally=Tally(out_of_memory=1, too_large=100))])
    assert set(notes.news("m", OWN).ran_out) == {(6000, 1), (100, 1)}, "5,000 and 6,000 are of one size"


def test_notes_of_another_process_are_not_news(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"pid": os.getpid() + 1, "device": "cpu", "peaks": [[10, 5.0]], "ran_out": [[10, 1]]}))
    assert Notes(tmp_path).news("m", OWN) == News(), "it was left by a service before"
    path.write_text("{")
    assert Notes(tmp_path).news("m", OWN) == News()


def test_instances_that_write_by_turns_are_told_once_each(tmp_path: Path) -> None:
    notes = Notes(tmp_path)

    def news(pid: int, times: int) -> tuple[tuple[int, int], ...]:
        path = tmp_path / "m.json"
        path.unlink(missing_ok=True)
        path.write_text(json.dumps({"pid": pid, "device": "cpu", "peaks": [], "ran_out": [[5000, times]]}))
        return notes.news("m", (1, 2)).ran_out

    assert [news(1, 1), news(2, 1), news(1, 2), news(2, 1)] == [((5000, 1),), ((5000, 1),), ((5000, 1),), ()]


def test_a_peak_is_measured_and_told_when_it_is_higher(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as new_process:  # one that has not held more before
        peak, lower, later = new_process.submit(_peaks, tmp_path / "m.json").result()
    assert 200 < peak < 400
    assert later == 0, "what was held between two calls is not the next one's"
    assert lower == 0, "a call that held less than the process once did says nothing"
    written, notes = Memory(tmp_path / "m.json", "cpu"), Notes(tmp_path)
    written.observe([Report(peak_mb=peak, tally=Tally(largest_pass=1000))])
    ((edges, told),) = notes.news("m", OWN).peaks
    assert (edges, abs(told - peak) < 0.1) == (1000, True)
    written.observe([Report(peak_mb=1.01 * peak, tally=Tally(largest_pass=1001))])
    assert notes.news("m", OWN) == News()


def _peaks(path: Path) -> tuple[float, float, float]:
    """MB of a call that holds 256, of one that holds nothing, and of such a one after 512 were held outside of calls."""
    written = Memory(path, "cpu")
    written.begin()
    held = np.ones(256 * 2**17)  # each page is written to
    peak = written.peak_mb()
    assert held.sum()
    written.begin()
    lower = written.peak_mb()
    assert np.ones(512 * 2**17).sum()
    written.begin()
    return peak, lower, written.peak_mb()
