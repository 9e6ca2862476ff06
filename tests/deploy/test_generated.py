"""What is generated for containers is what the code says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from docker import generate

FILES = generate.files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == FILES[path], "run python -m docker.generate"


def test_the_service_is_installed_without_what_only_tests_need() -> None:
    pins = FILES[generate.ROOT / "requirements" / "service.txt"].splitlines()
    names = {pin.partition("==")[0] for pin in pins}
    assert {"fastapi", "dbos", "grpcio", "psycopg-binary", "phonopy"} <= names
    assert not names & {"pytest", "mypy", "ruff", "torch", "schemathesis"}
    everything = (generate.ROOT / "requirements" / "gateway.txt").read_text().splitlines()
    assert set(pins) < set(everything)


def test_drift_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generate.pins, "service", lambda: "numpy==1.0\n")
    assert generate.main(["--check"]) == 1
    assert "requirements/service.txt" in capsys.readouterr().err


def test_nothing_is_written_where_nothing_differs(tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in FILES}
    assert generate.main([]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not subprocess.run(["git", "diff", "--quiet", "--", "requirements/service.txt"], cwd=generate.ROOT).returncode
    assert not list(tmp_path.iterdir())
