"""What the clients of an endurance run have seen; shared by their threads."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.service import say
from forcegate.errors import ForcegateError


class Wrong(Exception):
    """An answer that came and is not the right one."""


@dataclass
class Seen:
    """Counts and times.

    Attributes:
        answers: right answers, by kind of client.
        lost: requests that ended in an error after the client's retries; each with its kind, time and error.
        wrong: answers that differ from their reference, and bad structures that got something else than their 4xx.
        spans: when each call began and ended, on ``time.monotonic()``'s clock, by kind of client.
        tasks: the idempotency key of every task that was sent off.
    """

    answers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lost: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, kind: str, ask: Callable[[], int]) -> None:
        """One call of a client of ``kind``; ``ask`` returns how many right answers came of it, or raises."""
        began = time.monotonic()
        try:
            right = ask()
            with self._lock:  # a sum that is read before the call, and written after it, would forget those of others
                self.answers[kind] += right
        except Wrong as error:
            self._note(self.wrong, kind, began, error)
        except Exception as error:  # whatever else comes of a call is what this run looks for
            self._note(self.lost, kind, began, error)
        self.spans.setdefault(kind, []).append((began, time.monotonic()))

    def _note(self, entries: list[dict[str, Any]], kind: str, began: float, error: Exception) -> None:
        code = error.code if isinstance(error, ForcegateError) else type(error).__name__
        now = time.monotonic()
        entry = {"client": kind, "at_s": began - self.started, "after_s": now - began, "code": code, "detail": str(error)[:500]}
        entries.append(entry)
        say(f"{'wrong' if isinstance(error, Wrong) else 'lost'}: {entry}")
