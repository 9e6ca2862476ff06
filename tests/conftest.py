"""Fixtures that several kinds of tests share. Tests that need no service never start one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import RunningService, serving

MODELS = ("lj-argon", "sevennet-0", "chgnet-0.3.0", "sevennet-mf-0", "d3bj-pbe")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that leave it as they found it. Tests that kill processes start their own."""
    with serving(tmp_path_factory.mktemp("service"), MODELS) as running:
        yield running
