"""The audit of pinned packages: what is found, what is accepted, until when."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from exporters import audit
from exporters.audit import Acceptance, Finding

TODAY = date(2026, 11, 28)
REPORTS = {
    "requirements/a.txt": {
        "dependencies": [
            {
                "name": "one",
                "version": "1.0",
                "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
            },
            {"name": "two", "version": "2.0", "vulns": []},
            {"name": "three", "skip_reason": "Dependency not found"},
        ],
        "fixes": [],
    },
    "requirements/b.txt": {
        "dependencies": [
            {
                "name": "one",
                "version": "1.0",
                "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}],
            }
        ],
        "fixes": [],
    },
}
ONE = Finding("one", "1.0", "PYSEC-1", ("1.1",), ("requirements/a.txt", "requirements/b.txt"))


def known(until: date = TODAY, package: str = "one") -> Acceptance:
    return Acceptance("PYSEC-1", package, until, "why")


def test_a_package_in_several_environments_is_one_finding() -> None:
    assert audit.read(REPORTS) == ([ONE], ["three"])


def test_what_is_accepted_is_so_until_its_day_and_for_its_package() -> None:
    assert audit.judged([ONE], [known()], TODAY) == ([], [])
    assert audit.judged([ONE], [], TODAY) == ([ONE], [])
    late = audit.judged([ONE], [known(date(2026, 11, 27))], TODAY)
    assert late == ([ONE], ["PYSEC-1 of one was accepted until 2026-11-27"])
    assert audit.judged([ONE], [known(package="two")], TODAY)[0] == [ONE]


def test_an_acceptance_of_what_is_not_there_any_more_is_told() -> None:
    assert audit.judged([], [known()], TODAY) == ([], ["PYSEC-1 of one is not found any more"])


def test_the_list_in_the_repository_can_be_read_and_its_example_fits(tmp_path: Path) -> None:
    assert isinstance(audit.accepted(), list)
    text = audit.ACCEPTED.read_text()
    example = "\n".join(line.removeprefix("# ") for line in text[text.index("# [[accepted]]") :].splitlines())
    (file := tmp_path / "accepted.toml").write_text(example)
    assert audit.accepted(file) == [
        Acceptance("PYSEC-2026-1", "name", date(2027, 1, 31), "why it does not matter here, or what it waits for")
    ]


@pytest.mark.parametrize("entry", ['id = "a"', 'id = "a"\npackage = "b"\nuntil = "soon"\nreason = "c"', "x = 1"])
def test_an_entry_without_a_day_or_a_reason_is_refused(tmp_path: Path, entry: str) -> None:
    (file := tmp_path / "accepted.toml").write_text(f"[[accepted]]\n{entry}\n")
    with pytest.raises(ValueError, match=r"accepted\.toml"):
        audit.accepted(file)


def test_every_pinned_file_is_looked_at() -> None:
    names = {str(path.relative_to(audit.ROOT)) for path in audit.files()}
    assert {"requirements/gateway.txt", "requirements/service.txt", "forcefields/mace/requirements.txt"} <= names
