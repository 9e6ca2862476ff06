"""The workflows of GitHub: their form by GitHub's schema, and what they run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import run
from tests.service import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_workflows_fit_the_schema() -> None:
    done = run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))
    assert done.returncode == 0, done.stdout
    assert {path.stem for path in WORKFLOWS} == {"docs", "images", "release", "tests"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_has_least_rights_and_an_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180
        for step in job["steps"]:
            # What somebody else may have written, such as the name of a branch, never goes into a shell's text.
            assert "${{" not in step.get("run", ""), step


def test_files_that_they_name_exist() -> None:
    text = "".join(path.read_text() for path in WORKFLOWS).replace("${{ matrix.image }}", "gateway")
    for name in re.findall(r"(?<![\w/.-])(docker/Dockerfile\.\w+|\.ci/run)", text):
        assert (ROOT / name).is_file(), name


def test_images_are_scanned_and_come_with_a_list_of_what_is_in_them() -> None:
    text = (ROOT / ".github" / "workflows" / "images.yml").read_text()
    assert "trivy-action@" in text
    assert "sbom: true" in text
