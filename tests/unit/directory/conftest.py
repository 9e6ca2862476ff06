"""A directory of models over a Triton that says what the test tells it to say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forcefields.catalogue import Catalogue
from frontend.triton.directory import Directory
from tests.unit.directory.control import CATALOGUE, NAME, VARIANT, Control


@pytest.fixture
def control() -> Control:
    return Control()


@pytest.fixture
def directory(tmp_path: Path, control: Control) -> Directory:
    checkpoint = tmp_path / "repository" / NAME / "1" / VARIANT.checkpoint.file
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (tmp_path / "reports").mkdir()
    return Directory(control, CATALOGUE, (tmp_path / "repository",), tmp_path)  # type: ignore[arg-type]


@pytest.fixture
def both(tmp_path: Path, control: Control) -> Directory:
    """The directory of a catalogue whose model can be evaluated in two dtypes."""
    family = CATALOGUE.family_of(VARIANT)
    either = replace(VARIANT, dtypes=("float64", "float32"))
    families = {**CATALOGUE.families, family.name: replace(family, variants=(either,))}
    checkpoint = tmp_path / "repository" / NAME / "1" / VARIANT.checkpoint.file
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    return Directory(control, Catalogue(families), (tmp_path / "repository",), tmp_path)  # type: ignore[arg-type]
