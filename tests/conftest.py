"""Fixtures that several kinds of tests share. Tests that need no service never start one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service import ROOT, RunningService, serving

MODELS = ("lj-argon", "sevennet-0", "chgnet-0.3.0", "sevennet-mf-0", "d3bj-pbe")


ALONE = {
    "chaos": None,
    "api": {"test_behaviour", "test_crash", "test_kills", "test_queue", "test_tasks"},
    "integration": {"test_bench", "test_concurrent_clients", "test_loadtest", "test_replicas", "test_scheduler"},
}
"""Folder -> files, None for all of them but those of ``BESIDE``."""
BESIDE = {"test_checkpoints"}
"""It kills nothing and measures nothing: it only starts services that cannot serve everything."""


def alone(path: Path) -> bool:
    """Whether the tests of a file measure time, or kill and wait until all is well: that depends on what else runs."""
    files = ALONE.get(path.relative_to(ROOT / "tests").parts[0], set())
    return path.stem not in BESIDE if files is None else path.stem in files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks such tests ``alone``."""
    for item in items:
        if alone(item.path):
            item.add_marker("alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out, unread, files that ``-m alone`` or ``-m "not alone"`` would deselect: reading all of them takes a minute."""
    wanted = {"alone": True, "not alone": False}.get(config.getoption("markexpr"))
    if wanted is None or not collection_path.name.startswith("test_") or collection_path.is_dir():
        return None
    return True if alone(collection_path) != wanted else None


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all tests of a process that leave it as they found it. Tests that kill processes start their own."""
    with serving(tmp_path_factory.mktemp("service"), MODELS) as running:
        yield running
