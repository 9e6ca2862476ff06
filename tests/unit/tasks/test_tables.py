"""The tables of the tasks are used from threads while DBOS is being imported in another one."""

from __future__ import annotations

import subprocess
import sys


def test_whoever_makes_statements_has_all_of_what_they_are_made_with() -> None:
    """DBOS imports sqlalchemy.orm, which hooks itself into how values are looked at before all of it is there."""
    loaded = (
        "import sys, frontend.tasks.queue\n"
        "before = {name for name in sys.modules if name.startswith('sqlalchemy')}\n"
        "assert 'dbos' not in sys.modules, 'it takes seconds, which no start has to wait for'\n"
        "import dbos\n"
        "later = {name for name in sys.modules if name.startswith('sqlalchemy.orm')} - before\n"
        "print(*sorted(later))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
