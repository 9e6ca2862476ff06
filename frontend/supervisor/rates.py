"""How long requests wait in Triton and how busy the instances of a model are, from counters that only grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from frontend.scheduler.replicas import Seen
from frontend.triton.control import Answers

HOLD_SECONDS: Final = 10.0
"""A model whose passes take seconds answers nobody between two looks: what was last known of its queue counts for so long."""


class Rates:
    """What has changed between one look and the next, for each model."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Answers]] = {}
        self._waits: dict[str, tuple[float, float]] = {}

    def look(self, answers: Mapping[str, Answers], now: float) -> dict[str, Seen]:
        """By model; nothing of one that is new or has been loaded again since the last look.

        Args:
            answers: of all loaded models.
            now: s of a monotonic clock.
        """
        found = {}
        for model, new in answers.items():
            before = self._last.get(model)
            if before is not None and now > before[0] and new.well >= before[1].well:
                found[model] = self._between(model, before[1], new, now, now - before[0])
        self._last = {model: (now, new) for model, new in answers.items()}
        self._waits = {model: wait for model, wait in self._waits.items() if model in answers}
        return found

    def _between(self, model: str, old: Answers, new: Answers, now: float, seconds: float) -> Seen:
        if new.well > old.well:
            self._waits[model] = now, max(new.queued_ns - old.queued_ns, 0) / 1e9 / (new.well - old.well)
        at, wait = self._waits.get(model, (now, 0.0))
        busy = max(new.computed_ns - old.computed_ns, 0) / 1e9 / seconds
        return Seen(wait if now - at <= HOLD_SECONDS else 0.0, busy)
