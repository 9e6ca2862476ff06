"""Dockerfiles and scripts, read by hadolint and shellcheck, and compared with what the tests run without an engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from docker import compose
from tests.deploy.conftest import COPIED, FILES
from tests.deploy.tools import run
from tests.service import ROOT

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
SCRIPTS = [ROOT / "docker" / "install", ROOT / "docker" / "entrypoint"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    found = run("hadolint", str(path))
    assert found.returncode == 0, found.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo apt-get install x\n")
    assert run("hadolint", str(tmp_path / "Dockerfile")).returncode == 1


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    found = run("shellcheck", str(path))
    assert found.returncode == 0, found.stdout
    assert path.stat().st_mode & 0o111, "it has to be executable"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_as_nobody_in_particular_and_tell_their_health(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    *_, last = re.split(r"^FROM ", text, flags=re.MULTILINE)
    assert "USER ${USER_ID}:${USER_ID}" in last
    assert f"ARG USER_ID={compose.USER.partition(':')[0]}" in last
    patience = "120s" if path.suffix == ".triton" else "30s"
    assert re.search(rf"HEALTHCHECK --interval=30s --timeout=10s --retries=3\s+--start-period={patience}", last)
    assert 'org.opencontainers.image.version="${VERSION}"' in last
    assert f'ENTRYPOINT ["{compose.ENTRYPOINT}"]' in last


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_hold_what_the_tests_install(path: Path) -> None:
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", path.read_text(), re.MULTILINE):
        copied |= {word.partition("/")[0] for word in line.split()}
    assert copied == {*COPIED, *FILES}


def test_what_images_are_built_from_is_let_through_and_weights_are_not() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let = {line[1:].rstrip("/") for line in lines if line.startswith("!") and line.count("/") <= 1}
    assert let == {*COPIED, *FILES}
    assert lines.index("*") < lines.index("!Makefile")
    assert "model_repository/*/1/*" in lines


def test_the_vendor_s_image_is_new_enough() -> None:
    (tag,) = re.findall(r"^ARG TRITON_IMAGE=\S+:(\d+\.\d+)-py3$", (ROOT / "docker" / "Dockerfile.triton").read_text(), re.MULTILINE)
    assert float(tag) >= 26.07, "older servers have known holes"


@pytest.mark.parametrize("arguments", [(), ("nothing",)])
def test_the_install_script_says_how_it_is_called(arguments: tuple[str, ...]) -> None:
    told = subprocess.run([SCRIPTS[0], *arguments], capture_output=True, text=True)
    assert told.returncode == 2
    assert "usage" in told.stderr
