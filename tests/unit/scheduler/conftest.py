"""An owner on a machine that keeps its books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scheduler.scene import Scene


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Scene]:
    """Plays steps in a scene, and gives the scene as it was at the end."""

    def run(steps: Callable[[Scene], Awaitable[None]], **options: Any) -> Scene:
        async def whole() -> Scene:
            scene = Scene(tmp_path, **options)
            await scene.start()
            try:
                async with asyncio.timeout(30):
                    await steps(scene)
            finally:
                await scene.stop()
            return scene

        return asyncio.run(whole())

    return run
