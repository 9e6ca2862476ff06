"""``forcegate export`` with real environments, real gates and a server on loopback; ``forcegate env``."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones

from exporters import checkpoints, consent, family_python, prepare
from exporters.export import EXPORTED, FAILED, UP_TO_DATE, Exporter, Outcome
from exporters.own import OwnCheckpoint, remove
from forcefields.catalogue import load
from forcegate import cli
from forcegate.errors import CheckpointMismatch, CheckpointMissing, GateFailed, SetupError
from tests.fileserver import FileServer, file_server
from tests.service import ROOT, serving

KRYPTON = {"symbol": "Kr", "epsilon_eV": 0.0141, "sigma_A": 3.65, "cutoff_A": 8.5}
ARGON = {"symbol": "Ar", "epsilon_eV": 0.0103, "sigma_A": 3.4, "cutoff_A": 8.5}
# Spaces make it long enough to be interrupted.
WEIGHTS = (json.dumps(ARGON) + " " * 4_000_000).encode()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
OTHER_WEIGHTS = WEIGHTS + b" "
"""Two names never serve the same bytes."""

FAMILY = """
[family]
name = "fetched"
title = "Fetched"
environment = "lennard_jones"
package = "vesin"
version = "0.6.2"
licence = "part of Forcegate"

[defaults]
functional = "Lennard-Jones 12-6"
training_data = "none"
elements = "18"
cutoff = 8.5
dtype = "float64"
packing = {{ atoms = 16384, bytes_per_edge = 400 }}
gate = {{ forces = 1e-4, stress = 1e-5 }}

[[variant]]
name = "fetched-one"
aliases = ["fetched"]
summary = "Its hash is recorded"
checkpoint = {{ file = "one.json", source = "download", url = "{url}/one.json" }}

[[variant]]
name = "fetched-two"
aliases = []
summary = "Its hash is known, its licence has to be accepted"
licence = "ASL"
consent = "Academic use alone."
checkpoint = {{ file = "two.json", source = "download", url = "{url}/two.json", sha256 = "{sha256}" }}
"""


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        running.files = {"/one.json": WEIGHTS, "/two.json": OTHER_WEIGHTS}
        yield running


@pytest.fixture
def state(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder, and a family from elsewhere whose checkpoints have to be fetched from ``server``."""
    family = tmp_path / "families" / "fetched"
    family.mkdir(parents=True)
    (family / "family.toml").write_text(FAMILY.format(url=server.url, sha256=hashlib.sha256(OTHER_WEIGHTS).hexdigest()))
    (family / "adapter.py").write_text("from forcefields.lennard_jones.adapter import ADAPTER as ADAPTER\n")
    state = tmp_path / "state"
    state.mkdir()
    for name, value in {"STATE": state, "FAMILIES": tmp_path / "families", "ROOT": ROOT, "THREADS": 1}.items():
        monkeypatch.setenv(f"FORCEGATE_{name}", str(value))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return state


def exporter(state: Path, brought: Path | None = None, consents: str = "") -> Exporter:
    return Exporter(
        root=ROOT, state=state, threads=1, device="cpu", ask=lambda _variant: consents, say=lambda _line: None, brought=brought
    )


def one(outcomes: list[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "forcegate.cli", "export", *arguments]
    given: Mapping[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen(command, cwd=ROOT, text=True, **given)  # type: ignore[call-overload,no-any-return]


def place(state: Path, name: str = "fetched-one") -> Path:
    return state / "model_repository" / name / "1" / load().resolve(name).checkpoint.file


def test_a_download_is_exported_once_and_enforced_from_then_on(state: Path, server: FileServer) -> None:
    outcome = one(exporter(state).export(["fetched"]))
    assert outcome.status == EXPORTED, outcome.error
    assert place(state).read_bytes() == WEIGHTS
    assert json.loads((state / "checkpoints.json").read_text()) == {"fetched-one": SHA256}
    assert f'string_value: "{SHA256}"' in (place(state).parents[1] / "config.pbtxt").read_text()
    golden = json.loads((state / "golden" / "fetched-one.json").read_text())["fetched-one:float64"]
    assert golden["checkpoint_sha256"] == SHA256
    # The same potential as lj-argon's, whose energies are checked in.
    known = json.loads((ROOT / "forcefields/lennard_jones/golden.json").read_text())["lj-argon:float64"]["energies"]
    assert golden["energies"] == pytest.approx(known, abs=1e-12)
    manifest = json.loads((place(state).parent / "manifest.json").read_text())
    assert manifest["sha256"] == SHA256
    assert manifest["size"] == len(WEIGHTS)
    assert manifest["from"] == f"{server.url}/one.json"
    assert (manifest["package"], manifest["package_version"]) == ("vesin", "0.6.2")
    assert not list((state / "downloads").iterdir())

    requests = len(server.seen)
    again = one(exporter(state).export(["fetched-one"]))
    assert (again.status, len(server.seen)) == (UP_TO_DATE, requests)
    assert len(again.checks) == 9

    data = bytearray(WEIGHTS)
    data[-1] = ord("\n")
    place(state).write_bytes(data)
    refused = one(exporter(state).export(["fetched-one"]))
    assert isinstance(refused.error, CheckpointMismatch)
    assert SHA256 in refused.error.detail
    assert place(state).read_bytes() == data, "what somebody put there is not replaced in silence"
    place(state).unlink()
    assert one(exporter(state).export(["fetched-one"])).error is None
    assert place(state).read_bytes() == WEIGHTS


def test_the_service_never_downloads(state: Path, server: FileServer) -> None:
    catalogue = load()
    with pytest.raises(CheckpointMissing, match=r"one\.json") as caught:
        checkpoints.place(catalogue, catalogue.resolve("fetched-one"), state / "model_repository", ROOT / "environments", state)
    assert "forcegate export fetched-one" in caught.value.hint
    assert server.seen == []


def test_an_export_that_is_killed_goes_on_and_two_at_once_do_not_collide(state: Path, server: FileServer) -> None:
    server.pause = 0.05
    killed = start("fetched-one", "--state", str(state))
    try:
        deadline = time.monotonic() + 60
        while sum(path.stat().st_size for path in state.rglob("*.partial")) < 500_000:
            assert time.monotonic() < deadline
            assert killed.poll() is None, killed.communicate()
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert not place(state).exists()
    assert not (state / "checkpoints.json").exists()
    kept = sum(path.stat().st_size for path in state.rglob("*.partial"))
    server.pause = 0.01

    both = [start("fetched-one"), start("fetched-one")]
    told = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert [headers.get("range") for _path, headers in server.seen] == [None, f"bytes={kept}-"]
    assert place(state).read_bytes() == WEIGHTS
    tables = [output for output, _errors in told]
    assert sorted(("up to date" in table) for table in tables) == [False, True], tables
    assert any("another process is exporting it, waiting" in errors for _output, errors in told)


def test_weights_that_cannot_be_read_are_neither_kept_nor_recorded(state: Path, server: FileServer) -> None:
    server.files["/one.json"] = b"<Error>NoSuchKey</Error>"
    failed = one(exporter(state).export(["fetched-one"]))
    assert failed.status == FAILED
    assert "cannot be read: JSONDecodeError" in str(failed.error)
    assert not place(state).exists()
    assert json.loads((state / "checkpoints.json").read_text()) == {}
    assert "JSONDecodeError" in (state / "logs" / "export.log").read_text()
    server.files["/one.json"] = WEIGHTS
    assert one(exporter(state).export(["fetched-one"])).status == EXPORTED


def test_a_licence_is_asked_for_and_files_brought_by_hand_need_it_too(state: Path, tmp_path: Path, server: FileServer) -> None:
    (tmp_path / "usb" / "fetched-two").mkdir(parents=True)
    (tmp_path / "usb" / "fetched-two" / "two.json").write_bytes(OTHER_WEIGHTS)
    refused = one(exporter(state, tmp_path / "usb").export(["fetched-two"]))
    assert "ASL. Academic use alone." in str(refused.error)
    assert not place(state, "fetched-two").exists()

    terminal, other = pty.openpty()
    process = start("fetched-two", "--from-dir", str(tmp_path / "usb"), stdin=other, stderr=other)
    os.close(other)
    shown = ""
    while "[y/N]" not in shown:
        shown += os.read(terminal, 4096).decode()
    os.write(terminal, b"y\n")
    output, _ = process.communicate(timeout=120)
    os.close(terminal)
    assert process.returncode == 0, output + shown
    assert "Academic use alone." in " ".join(shown.split())
    given = consent.given(state, load().resolve("fetched-two"))
    assert given is not None
    assert given["how"] == "on the terminal"
    assert server.seen == []
    assert place(state, "fetched-two").read_bytes() == OTHER_WEIGHTS
    assert (tmp_path / "usb" / "fetched-two" / "two.json").exists(), "what was brought is copied, not moved"
    assert one(exporter(state).export(["fetched-two"])).status == UP_TO_DATE, "the consent is remembered"


def test_an_own_checkpoint_is_served_like_any_other(state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCEGATE_FAMILIES")
    file = tmp_path / "krypton.json"
    file.write_text(json.dumps(KRYPTON))
    given = ("--file", str(file), "--as", "krypton-mine", "--like", "lj-argon", "--functional", "fitted to krypton")
    process = start(*given)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "krypton-mine" in output
    file.unlink()

    variant = load().resolve("krypton-mine")
    assert (variant.elements, variant.cutoff, variant.functional) == ((36,), 8.5, "fitted to krypton")
    atoms = bulk("Kr", cubic=True) * (2, 2, 2)
    atoms.rattle(0.1, seed=3)
    atoms.calc = LennardJones(epsilon=KRYPTON["epsilon_eV"], sigma=KRYPTON["sigma_A"], rc=KRYPTON["cutoff_A"])
    body = {
        "model_name": "krypton-mine",
        "atoms": {
            "numbers": atoms.numbers.tolist(),
            "positions": atoms.positions.tolist(),
            "cell": atoms.cell.tolist(),
            "pbc": True,
        },
    }
    with serving(state, ["krypton-mine"]) as service:
        answer = httpx.post(f"{service.url}/api/v1/single_point", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        result = answer.json()
        assert result["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(result["forces"], atoms.get_forces(), atol=1e-9)
        np.testing.assert_allclose(result["stress"], atoms.get_stress(), atol=1e-10)
        assert result["provenance"]["checkpoint_sha256"] == variant.checkpoint.sha256
        assert result["provenance"]["functional"] == "fitted to krypton"
        models = httpx.get(f"{service.url}/api/v1/models", timeout=10).json()["models"]
        assert {model["name"]: model["state"] for model in models}["krypton-mine"] == "ready"

    place(state, "krypton-mine").write_text(json.dumps(KRYPTON | {"sigma_A": 3.66}))
    refused = one(exporter(state).export(["krypton-mine"]))
    assert isinstance(refused.error, CheckpointMismatch)
    told: list[str] = []
    prepare.prepare(ROOT, state, load(), ["krypton-mine"], told.append)
    assert any("has other bytes than the catalogue vouches for" in line for line in told)

    # What a call has shown of its memory is written where it is news, which it need not have been here.
    (state / "memory").mkdir(exist_ok=True)
    (state / "memory" / "krypton-mine.json").touch()
    remove("krypton-mine", state)
    assert "krypton-mine" not in load().variants
    assert not list(state.rglob("*krypton-mine*.json"))
    assert not (state / "model_repository" / "krypton-mine").exists()


def test_an_own_name_never_changes_its_meaning(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "krypton.json"
    file.write_text(json.dumps(KRYPTON))
    mine = OwnCheckpoint(file, "mine", family="lennard_jones", functional="one")
    assert exporter(state).export_own(mine).status == EXPORTED
    assert exporter(state).export_own(mine).status == UP_TO_DATE
    other = exporter(state).export_own(OwnCheckpoint(file, "mine", family="lennard_jones", functional="two"))
    assert "another functional" in str(other.error)
    file.write_text(json.dumps(KRYPTON | {"sigma_A": 3.7}))
    changed = exporter(state).export_own(mine)
    assert "another checkpoint already" in str(changed.error)
    assert "--remove mine" in str(changed.error)
    assert exporter(state).export(["mine"])[0].status == UP_TO_DATE, "the copy is served, not the file"


def test_an_own_checkpoint_that_is_none_or_fails_its_gate_is_not_kept(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.json"
    file.write_text("not JSON")
    failed = exporter(state).export_own(OwnCheckpoint(file, "mine", family="lennard_jones"))
    assert isinstance(failed.error, SetupError)
    assert "vesin 0.6.2 cannot read" in failed.error.detail

    file.write_text(json.dumps(KRYPTON))
    real = family_python.ask

    def fails(environments: Path, environment: str, command: str, *arguments: str, **options: object) -> object:
        if command == "judge":
            raise GateFailed("mine did not pass its readiness gate: forces deviates by 1 eV/A.", "")
        return real(environments, environment, command, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(family_python, "ask", fails)
    failed = exporter(state).export_own(OwnCheckpoint(file, "mine", family="lennard_jones"))
    assert isinstance(failed.error, GateFailed)
    assert "--like" in failed.error.hint
    assert "mine" not in load().variants
    assert not (state / "model_repository" / "mine").exists()


def test_a_full_disk_while_a_checkpoint_is_copied_leaves_nothing(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_source: Path, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "usb").mkdir()
    (tmp_path / "usb" / "one.json").write_bytes(WEIGHTS)
    monkeypatch.setattr(shutil, "copyfile", full)
    failed = one(exporter(state, tmp_path / "usb").export(["fetched-one"]))
    assert "No space left on device" in str(failed.error)
    assert [path for path in state.rglob("*one.json*") if path.is_file()] == []
    assert not (state / "checkpoints.json").exists()


def test_an_unknown_name_stops_before_anything_is_done(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert forcegate("export", "fetched-one", "nonsense-model") == 3
    assert "There is no model 'nonsense-model'" in capsys.readouterr().err
    assert list(state.iterdir()) == []


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize(
    "arguments",
    [(), ("lj-argon", "--all"), ("lj-argon", "--as", "mine"), ("--file", "krypton.json"), ("lj-argon", "--from-dir", "nowhere")],
)
def test_what_does_not_fit_together_is_refused(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert forcegate("export", *arguments) == 2
    assert capsys.readouterr().err.startswith("Error:")


@pytest.mark.usefixtures("state")
def test_environments_are_listed_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert forcegate("env", "list", "lennard_jones") == 0
    listed = capsys.readouterr().out
    assert all(part in listed for part in ("vesin 0.6.2", "complete", " GB "))
    assert forcegate("env", "build", "lennard_jones") == 0
    assert forcegate("env", "check", "lennard_jones", "fetched", "triton") == 0
    assert capsys.readouterr().out.count("LennardJones imported") == 2
    assert forcegate("env", "build") == 2
    assert forcegate("env", "list", "nothing") == 2
    monkeypatch.setenv("FORCEGATE_ROOT", str(tmp_path))
    capsys.readouterr()
    assert forcegate("env", "check", "lennard_jones") == 1
    assert "Run `forcegate env build lennard_jones`" in capsys.readouterr().err


@pytest.mark.usefixtures("state")
def test_an_environment_with_another_package_than_pinned_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "families" / "fetched" / "family.toml"
    path.write_text(path.read_text().replace('version = "0.6.2"', 'version = "0.6.1"'))
    assert forcegate("env", "check", "fetched") == 1
    assert "should hold vesin 0.6.1; it is 0.6.2" in capsys.readouterr().err


def forcegate(*arguments: str) -> int:
    """The exit code of the command, run in this process."""
    before = sys.argv
    sys.argv = ["forcegate", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0
