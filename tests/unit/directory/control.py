"""What Triton and a model's process would say, for the tests of the directory of models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporters.repository import parameters
from forcefields import catalogue
from forcegate.errors import (
    ForcegateError,
    ServerUnavailable,
)
from frontend.triton.control import ModelState

NAME = "lj-argon"
CATALOGUE = catalogue.load()
VARIANT = CATALOGUE.variants[NAME]


class Control:
    """Stands for Triton's control API: says what the test tells it to say."""

    def __init__(self) -> None:
        self.index: dict[str, ModelState] = {}
        self.parameters = parameters(VARIANT, CATALOGUE.family_of(VARIANT))
        self.away = False
        self.failure: ForcegateError | None = None
        self.reloads = 0
        self.slow = asyncio.Event()
        self.slow.set()

    def say(self, state: str, reason: str = "") -> None:
        self.index = {NAME: ModelState(NAME, state, reason)}

    async def states(self) -> dict[str, ModelState]:
        if self.away:
            raise ServerUnavailable("away")
        return self.index

    async def config(self, _name: str) -> dict[str, Any]:
        return {"parameters": {key: {"string_value": value} for key, value in self.parameters.items()}}

    async def load(self, _name: str) -> None:
        await asyncio.sleep(0.05)
        await self.slow.wait()
        if self.failure is not None:
            self.say("UNAVAILABLE", self.failure.to_wire())
            raise self.failure
        self.say("READY")

    async def load_in(self, name: str, dtype: str, _repositories: object) -> None:
        await self.load(name)
        self.parameters["dtype"] = dtype

    async def reload(self, name: str, dtype: str = "") -> None:
        self.reloads += 1
        await self.load(name)
        self.parameters["dtype"] = dtype or self.parameters["dtype"]

    async def unload(self, _name: str) -> None:
        self.say("UNAVAILABLE", "unloaded")


def report(directory: Path, pid: int, **more: object) -> None:
    (directory / "reports" / f"{NAME}.json").write_text(
        json.dumps({"model": NAME, "ready": True, "pid": pid, "device": "cpu"} | more)
    )


def run(steps: Callable[[], Any]) -> Any:
    return asyncio.run(steps())


def failed(directory: Path, error: ForcegateError, pid: int) -> None:
    """The report of a process that refused to serve, and has ended."""
    told = {"code": error.code, "detail": error.detail, "hint": error.hint}
    report(directory, pid, ready=False, error=told, time=2.0)
