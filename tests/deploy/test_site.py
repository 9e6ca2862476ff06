"""The documentation as a site: every page, link and anchor, without a warning."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.service import ROOT

MKDOCS = ROOT / "environments" / "docs" / "bin" / "mkdocs"


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [str(MKDOCS), "build", "--config-file", str(config), "--site-dir", str(folder)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_document_has_its_page(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    assert pages | {"index", "quickstart", "contributing", "changelog", "python"} <= {path.stem for path in site.glob("*.html")}
    assert (site / "openapi.json").is_file()


def test_links_between_documents_lead_to_pages_and_those_to_code_are_names(site: Path) -> None:
    page = (site / "quickstart.html").read_text()
    assert 'href="relaxation.html"' in page
    assert "docs/relaxation.md" in page, "as it is called in the repository"
    contributing = (site / "contributing.html").read_text()
    assert "forcefields/lennard_jones" in contributing
    assert 'href="forcefields' not in contributing


def test_the_python_reference_has_the_public_classes_with_their_words(site: Path) -> None:
    page = (site / "python.html").read_text()
    for name in ("ForcegateCalculator", "Client", "AsyncClient"):
        assert f'id="forcegate.{name}"' in page
    assert "FORCEGATE_GRPC" in page


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "README.md").write_text("[nowhere](nowhere.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\ndocs_dir: docs\nstrict: true\nvalidation: {links: {not_found: warn}}\n")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
