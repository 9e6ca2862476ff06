"""A service that tests may hurt: models that load in a moment, a short watchdog, and the faulty family."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import ROOT, RunningService, serving


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with lj-argon and faulty; it heals after what is done to it, so a module shares one."""
    families = ROOT / "tests" / "families"
    state = tmp_path_factory.mktemp("fragile")
    with serving(state, ("lj-argon", "faulty"), families=families, watchdog_seconds=3, drain_seconds=20) as running:
        yield running
