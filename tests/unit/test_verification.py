"""A checkpoint is its bytes, and an environment holds what is pinned."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from forcefields import catalogue
from forcefields.runtime import loading
from forcefields.verification import sha256, verify_checkpoint, verify_package
from forcegate.errors import CheckpointMismatch, CheckpointMissing, EnvironmentBroken

KNOWN = catalogue.load()
ARGON = KNOWN.resolve("lj-argon")
FAMILY = KNOWN.family_of(ARGON)
RIGHT = FAMILY.folder / ARGON.checkpoint.path


def test_the_right_bytes(tmp_path: Path) -> None:
    path = tmp_path / "any name will do"
    path.write_bytes(RIGHT.read_bytes())
    verify_checkpoint(path, ARGON)


@pytest.mark.parametrize("change", [lambda b: b + b"\n", lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], lambda _: b""])
def test_other_bytes_are_refused_with_both_hashes(change: object, tmp_path: Path) -> None:
    path = tmp_path / "lj-argon" / "1" / "argon.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(change(RIGHT.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CheckpointMismatch) as caught:
        verify_checkpoint(path, ARGON)
    for part in ("lj-argon/1/argon.json", ARGON.checkpoint.sha256, hashlib.sha256(path.read_bytes()).hexdigest()):
        assert part in caught.value.detail
    assert str(tmp_path) not in str(caught.value), "where the service lies is nobody's business"


def test_a_missing_checkpoint_names_the_file_and_the_hash(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing) as caught:
        verify_checkpoint(tmp_path / "lj-argon" / "1" / "argon.json", ARGON)
    assert "lj-argon/1/argon.json" in caught.value.detail
    assert ARGON.checkpoint.sha256 in caught.value.detail
    assert caught.value.hint


def test_a_checkpoint_is_never_loaded_before_it_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled checkpoints run code."""
    path = tmp_path / "argon.json"
    path.write_text("{}")
    monkeypatch.setattr(loading, "adapter", lambda *_: pytest.fail("loaded"))
    with pytest.raises(CheckpointMismatch):
        loading.load(KNOWN, ARGON, path, "cpu")


def test_a_checkpoint_that_disagrees_with_the_catalogue() -> None:
    wrong = replace(ARGON, cutoff=9.0)
    with pytest.raises(CheckpointMismatch, match=r"cutoff 9\.0 and 8\.5"):
        loading.load(KNOWN, wrong, RIGHT, "cpu")
    with pytest.raises(CheckpointMismatch, match="2 and 1 elements"):
        loading.load(KNOWN, replace(ARGON, elements=(18, 36)), RIGHT, "cpu")


def test_the_version_of_the_package() -> None:
    verify_package(replace(FAMILY, package="numpy", version=numpy.__version__))
    with pytest.raises(EnvironmentBroken, match=rf"numpy 0\.1; it is {numpy.__version__}"):
        verify_package(replace(FAMILY, package="numpy", version="0.1"))
    with pytest.raises(EnvironmentBroken, match="not installed"):
        verify_package(replace(FAMILY, package="no-such-package"))


def test_the_hash_of_a_folder_is_that_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_text("1")
    (tmp_path / "sub" / "b").write_text("2")
    before = sha256(tmp_path)
    assert sha256(tmp_path) == before
    (tmp_path / "sub" / "b").write_text("3")
    changed = sha256(tmp_path)
    assert changed != before
    (tmp_path / "sub" / "b").write_text("2")
    assert sha256(tmp_path) == before
    (tmp_path / "sub" / "b").rename(tmp_path / "sub" / "c")
    assert sha256(tmp_path) not in (before, changed)


def test_how_large_a_structure_fits() -> None:
    chosen = loading.limits(ARGON, max_atoms=123, memory_gb=1.0)
    assert (chosen.atoms, chosen.edges) == (123, int(1e9 / ARGON.packing.bytes_per_edge))
    assert loading.limits(ARGON, 123, 1e-6).edges == 10_000, "small molecules are taken whatever the memory"
    assert loading.limits(ARGON, 123, 0.0).edges >= 10_000
