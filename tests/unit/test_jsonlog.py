"""One JSON object a line, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from forcegate import jsonlog


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    stream = io.StringIO()
    jsonlog.configure("info", stream, process="model", model="m")
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_in_a_line(lines: io.StringIO) -> None:
    logging.getLogger("forcefields.x").info("batch of %d", 3, extra={"request_ids": ["a", "b"], "seconds": 0.5})
    (line,) = read(lines)
    assert datetime.fromisoformat(line.pop("time").replace("Z", "+00:00")).tzinfo is not None
    assert line == {
        "level": "info",
        "logger": "forcefields.x",
        "message": "batch of 3",
        "process": "model",
        "model": "m",
        "request_ids": ["a", "b"],
        "seconds": 0.5,
    }


def test_a_traceback_stays_in_its_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("x").exception("failed")
    (line,) = read(lines)
    assert "ValueError: first\nsecond" in line["traceback"]
    assert len(lines.getvalue().splitlines()) == 1


def test_anything_can_be_extra(lines: io.StringIO) -> None:
    logging.getLogger("x").warning("odd\nmessage", extra={"object": {1, 2}, "path": io.StringIO})
    (line,) = read(lines)
    assert line["message"] == "odd\nmessage"
    assert line["object"] == "{1, 2}"


def test_levels(lines: io.StringIO) -> None:
    logging.getLogger("x").debug("not this")
    logging.getLogger("x").warning("this")
    assert [line["level"] for line in read(lines)] == ["warning"]


def test_a_signal_tells_where_each_thread_stands() -> None:
    program = (
        "import os, signal, threading\n"
        "from forcegate import jsonlog\n"
        "jsonlog.configure('info')\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "print('goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "goes on\n", done.stderr
    assert "Current thread" in done.stderr
    assert "threading.py" in done.stderr, "the other one"
