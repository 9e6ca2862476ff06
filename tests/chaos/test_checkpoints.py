"""A checkpoint with other bytes, or none: that model is not served, the others are."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from forcefields.catalogue import load
from forcefields.verification import sha256, verify_checkpoint
from forcegate.errors import CheckpointMismatch, CheckpointMissing
from tests.service import ROOT, serving


def test_other_bytes_are_refused_and_the_others_serve(tmp_path: Path) -> None:
    wrong = tmp_path / "model_repository" / "faulty" / "1" / "argon.json"
    wrong.parent.mkdir(parents=True)
    wrong.write_text((ROOT / "tests/families/faulty/argon.json").read_text().replace("3.4", "3.5"))
    with serving(tmp_path, ("lj-argon", "faulty"), families=ROOT / "tests" / "families") as service:
        expected = load([ROOT / "tests" / "families"]).resolve("faulty").checkpoint.sha256
        told = service.log("serve")
        for part in ("faulty/1/argon.json", expected, sha256(wrong)):
            assert part in told.replace("\n", "")
        models = {m["name"]: m for m in httpx.get(f"{service.url}/api/v1/models", timeout=10).json()["models"]}
        assert models["lj-argon"]["state"] == "ready"
        assert models.get("faulty", {"state": "failed"})["state"] == "failed"
        body = {"model_name": "faulty", "atoms": {"symbols": ["Ar"], "positions": [[0, 0, 0]]}}
        answer = httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=30)
        assert answer.status_code == 409, answer.text
        assert answer.json()["code"] == "checkpoint_mismatch"
        assert expected in answer.json()["detail"]
        body["model_name"] = "lj-argon"
        assert httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=30).status_code == 200


def test_a_missing_checkpoint_is_named_and_the_others_serve(tmp_path: Path) -> None:
    families = tmp_path / "families"
    shutil.copytree(ROOT / "tests" / "families", families)
    (families / "faulty" / "argon.json").unlink()
    with serving(tmp_path, ("lj-argon", "faulty"), families=families) as service:
        told = service.log("serve").replace("\n", "")
        assert "argon.json" in told
        assert "ffdba61bf352c9e37ee6cef3f614131b0f950acb29e1d423762e5fd5c8801981" in told
        body = {"model_name": "faulty", "atoms": {"symbols": ["Ar"], "positions": [[0, 0, 0]]}}
        answer = httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=30)
        assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_missing"), answer.text
        body["model_name"] = "lj-argon"
        assert httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=30).status_code == 200


@pytest.mark.parametrize("name", ["sevennet-0", "chgnet-0.3.0"])
def test_real_checkpoints_are_verified_byte_by_byte(tmp_path: Path, name: str) -> None:
    variant = load().resolve(name)
    path = tmp_path / name / "1" / variant.checkpoint.file
    path.parent.mkdir(parents=True)
    with pytest.raises(CheckpointMissing, match=variant.checkpoint.sha256):
        verify_checkpoint(path, variant)
    original = ROOT / "model_repository" / name / "1" / variant.checkpoint.file
    data = bytearray(original.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointMismatch, match=sha256(path)):
        verify_checkpoint(path, variant)
    shutil.copyfile(original, path)
    verify_checkpoint(path, variant)
