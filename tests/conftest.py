"""Fixtures that several kinds of tests share. Tests that need no service never start one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.service import ROOT, RunningService, serving

MODELS = ("lj-argon", "sevennet-0", "chgnet-0.3.0", "sevennet-mf-0", "d3bj-pbe")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks ``alone`` what starts or asks a service: who shares whose batch, and how long it takes, depends on what else runs."""
    for item in items:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        alone = item.path.stem in ("test_parts", "test_prometheus") if folder == "deploy" else folder not in ("unit", "conformance")
        if alone or "service" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests that leave it as they found it. Tests that kill processes start their own."""
    with serving(tmp_path_factory.mktemp("service"), MODELS) as running:
        yield running
