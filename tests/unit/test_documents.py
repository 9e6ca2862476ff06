"""What is generated is up to date, and what is written by hand names nothing that does not exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from docs import generate
from forcefields import catalogue
from forcegate.errors import BY_CODE
from frontend.settings import PREFIX, Settings, load
from frontend.tasks.worker_metrics import WorkerMetrics
from frontend.telemetry import Metrics
from tests.service import ROOT

WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "forcegate",
    "forcefields",
    "frontend",
    "exporters",
    "tests",
    "benchmarks",
    "docs",
    "docker",
    "triton_configs",
    "requirements",
)


@pytest.mark.parametrize("path", generate.pages(), ids=lambda path: path.name)
def test_generated_pages_are_up_to_date(path: Path) -> None:
    assert path.read_text() == generate.pages()[path], "run python -m docs.generate"


def test_a_page_that_drifts_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(generate.ACTIONS, "unknown_head", "Something that is not in the page.")
    assert generate.main(["--check"]) == 1
    assert "docs/errors.md" in capsys.readouterr().err


def test_the_example_file_of_settings_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(), re.DOTALL)
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    (tmp_path / "own.toml").write_text(text)
    monkeypatch.setenv("FORCEGATE_CONFIG", str(tmp_path / "own.toml"))
    settings = load()
    assert settings.port == tomllib.loads(text)["port"] != Settings.model_fields["port"].default
    assert settings.models == ("sevennet-0", "chgnet-0.3.0", "sevennet-mf-0")
    monkeypatch.setenv("FORCEGATE_PORT", "8200")
    assert load().port == 8200, "a variable comes before the file"


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", path.read_text())
    # forcefields/morse is the family that CONTRIBUTING.md adds.
    assert [name for name in named if not (ROOT / name).exists() and not name.startswith("forcefields/morse")] == []


def test_tests_that_are_named_exist() -> None:
    for path in WRITTEN:
        for file, function in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text()):
            assert re.search(rf"def {function}\b", (ROOT / file).read_text()), f"{path.name}: {file}::{function}"


def test_settings_that_are_named_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    known |= {"FORCEGATE_CONFIG", "FORCEGATE_URL", "FORCEGATE_GRPC", "FORCEGATE_API_KEY"}
    known |= set(re.findall(r"^#(FORCEGATE_\w+)=", (ROOT / ".env.production.example").read_text(), re.MULTILINE))
    for path in WRITTEN:
        assert set(re.findall(r"FORCEGATE_[A-Z_]+", path.read_text())) <= known, path.name


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    _, of_gateway, of_worker, of_models, _ = re.split(r"^### Of .*$", page, flags=re.MULTILINE)
    suffix = {"counter": "_total", "info": "_info"}
    families = [family for family in Metrics().registry.collect() if family.name.startswith("forcegate_")]
    assert set(re.findall(r"^\| `(\w+)`", of_gateway, re.MULTILINE)) == {f.name + suffix.get(f.type, "") for f in families}
    worker = [family.name for family in WorkerMetrics(1, list).registry.collect() if family.name.startswith("forcegate_")]
    assert set(re.findall(r"^\| `(\w+)`", of_worker, re.MULTILINE)) == set(worker)
    code = (ROOT / "forcefields" / "runtime" / "metrics.py").read_text()
    assert set(re.findall(r"^\| `(\w+)`", of_models, re.MULTILINE)) == set(re.findall(r'"(forcegate_\w+)"', code))


def test_every_error_and_every_model_is_documented() -> None:
    assert set(re.findall(r"^\| `(\w+)`", generate.errors(), re.MULTILINE)) == set(BY_CODE)
    page = (ROOT / "docs" / "models.md").read_text()
    for variant in catalogue.load([catalogue.HERE]).variants.values():
        assert variant.hidden or variant.checkpoint.sha256 in page


def test_the_first_two_commands_are_serve_and_test() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [block.strip() for block in blocks[:2]] == ["make serve", "make test"]
