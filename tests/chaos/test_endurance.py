"""A minute of ``python -m benchmarks.endurance``: every kind of client while every kind of process is killed at random."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.endurance.clients import SHARES
from tests.service import ROOT


def test_nothing_is_lost_while_every_process_is_killed(tmp_path: Path) -> None:
    length = ["--seconds", "60", "--every", "5", "--sample", "1", "--clients", "24", "--pause", "0.5", "--models", "lj-argon"]
    folders = ["--state", str(tmp_path / "state"), "--output", str(tmp_path), "--name", "run"]
    command = [sys.executable, "-m", "benchmarks.endurance", *length, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    results = json.loads((tmp_path / "run.json").read_text())
    assert (results["lost"], results["wrong"]) == ([], []), done.stderr
    assert (results["tasks"]["lost"], results["tasks"]["double"], results["shared_memory"]["left"]) == (0, 0, 0)
    assert done.returncode == 0
    # It was a test: each kind of client was answered, and processes were killed; most kills wait until the last one is got over.
    assert len(results["run"]["kills"]) >= 3
    assert {kind for kind, count in results["answers"].items() if count} == set(SHARES) - {"bad"}
    assert results["refused"]
    assert (tmp_path / "run.png").stat().st_size > 10_000
