"""One JSON object a line on standard error: the log format of every process of the service."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from io import UnsupportedOperation
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
Encode = Callable[[dict[str, Any]], str]
"""Writes an object as JSON in one line; what JSON has no word for becomes a text."""
plain: Encode = partial(json.dumps, default=str)


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and whatever was given as ``extra``."""

    def __init__(self, encode: Encode = plain, **constant: str) -> None:
        super().__init__()
        self._encode = encode
        self._constant = constant

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON; a traceback becomes one string."""
        milliseconds = int(record.msecs)
        entry: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{milliseconds:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._constant,
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return self._encode(entry)


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def configure(level: str, stream: TextIO | None = None, encode: Encode = plain, **constant: str) -> None:
    """Sends all logging of this process to ``stream`` (standard error) as JSON; ``constant`` is added to every line.

    SIGUSR1 writes there where each thread stands, in lines that are not JSON: for a process that seems to do nothing.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    with suppress(UnsupportedOperation):  # a stream that is no file
        faulthandler.register(signal.SIGUSR1, file=handler.stream)
    handler.setFormatter(JsonFormatter(encode, **constant))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
