"""Where checkpoints come from: files brought by hand, archives, the hub and its token; and who may have them."""

from __future__ import annotations

import io
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporters import checkpoints, consent, own, records
from exporters import download as downloading
from exporters.sources import Sources, Staged, expand
from forcefields.catalogue import EXPORTS, HERE, RECORD, Catalogue, Checkpoint, Family, Variant, load
from forcefields.verification import sha256
from forcegate.errors import CheckpointMismatch, CheckpointMissing, InvalidRequest, SetupError
from tests.fileserver import FileServer, file_server

TOKEN = "hf_secret"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    with file_server() as running:
        yield running


def variant(name: str = "one", token: bool = False, consent: str = "", licence: str = "MIT", **checkpoint: str) -> Variant:
    given = {"file": "one.pt", "source": "download", "url": "https://huggingface.co/owner/repository/resolve/main/one.pt"}
    return Variant(
        name=name,
        family="family",
        aliases=(),
        summary="",
        functional="PBE",
        training_data="",
        elements=(1,),
        checkpoint=Checkpoint(**given | checkpoint),
        cutoff=5.0,
        licence=licence,
        consent=consent,
        token=token,
    )


def catalogue(*variants: Variant) -> Catalogue:
    return Catalogue({"family": Family("family", "", "", "", "", "", Path(), "family", variants)})


def bring(tmp_path: Path, wanted: Variant, brought: Path | None = None, others: tuple[Variant, ...] = ()) -> Path:
    sources = Sources(catalogue(wanted, *others), tmp_path / "downloads", brought, lambda *_told: None, lambda _line: None)
    return sources.bring(wanted, tmp_path / "repository" / wanted.name / "1" / wanted.checkpoint.file).path


def test_several_files_in_one_address() -> None:
    assert expand("https://host/a/{one.json,two.pt}") == ["https://host/a/one.json", "https://host/a/two.pt"]
    assert expand("https://host/a/one.pt") == ["https://host/a/one.pt"]


@pytest.mark.parametrize("place", ["one/one.pt", "one.pt"])
def test_files_brought_by_hand(tmp_path: Path, place: str) -> None:
    path = tmp_path / "usb" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    assert bring(tmp_path, variant(), tmp_path / "usb") == path
    assert bring(tmp_path, variant(sha256=sha256(path)), tmp_path / "usb") == path
    with pytest.raises(CheckpointMismatch, match="0" * 64):
        bring(tmp_path, variant(sha256="0" * 64), tmp_path / "usb")


def test_a_name_that_two_models_share_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "one.pt").write_bytes(b"weights")
    others = (variant("two", url="https://host/two.pt"),)
    with pytest.raises(CheckpointMissing, match="has no checkpoint for one") as caught:
        bring(tmp_path, variant(), tmp_path, others)
    assert "one/one.pt" in caught.value.hint
    assert bring(tmp_path, variant(sha256=sha256(tmp_path / "one.pt")), tmp_path, others) == tmp_path / "one.pt"


def test_a_file_that_is_not_among_them_is_named_with_its_hash_and_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing) as caught:
        bring(tmp_path, variant(sha256="a" * 64), tmp_path)
    for part in ("one.pt", "a" * 64, "repository/one/1/one.pt"):
        assert part in caught.value.detail


def test_without_network_the_error_says_how_to_do_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "PAUSE", 0.01)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SetupError) as caught:
        bring(tmp_path, variant(sha256="a" * 64))
    for part in ("one.pt", "a" * 64, "repository/one/1/one.pt", "127.0.0.1"):
        assert part in caught.value.detail
    assert "forcegate export one --from-dir DIR" in caught.value.hint
    assert "https://huggingface.co/owner/repository" in caught.value.hint


def test_the_token_goes_to_the_hub_for_gated_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.files["/owner/repository/resolve/main/one.pt"] = b"weights"
    assert bring(tmp_path, variant(token=True)).read_bytes() == b"weights"
    assert server.seen[-1][1]["authorization"] == f"Bearer {TOKEN}"
    assert bring(tmp_path / "open", variant()).read_bytes() == b"weights"
    assert "authorization" not in server.seen[-1][1]
    with file_server() as other:  # gated, but not at the hub
        other.files["/one.pt"] = b"weights"
        assert bring(tmp_path / "other", variant(token=True, url=f"{other.url}/one.pt")).read_bytes() == b"weights"
        assert "authorization" not in other.seen[-1][1]


def test_without_a_token_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(SetupError, match="gated") as caught:
        bring(tmp_path, variant(token=True))
    assert "HF_TOKEN" in caught.value.hint
    assert "https://huggingface.co/owner/repository," in caught.value.hint
    assert server.seen == []


@pytest.mark.parametrize(("status", "why"), [(401, "token is not valid"), (403, "not been given access"), (404, "does not have")])
def test_a_refusal_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FileServer, status: int, why: str) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.answers = [status]
    with pytest.raises(SetupError, match=str(status)) as caught:
        bring(tmp_path, variant(token=True))
    assert why in caught.value.hint
    assert TOKEN not in str(caught.value)
    assert [path for path in (tmp_path / "downloads").rglob("*") if path.is_file()] == []


def test_several_files_become_a_folder(tmp_path: Path, server: FileServer) -> None:
    server.files = {"/m/model.json": b"{}", "/m/state.pt": b"weights"}
    folder = bring(tmp_path, variant(file="model", url=server.url + "/m/{model.json,state.pt}"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.json": b"{}", "state.pt": b"weights"}


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_is_unpacked(tmp_path: Path, server: FileServer, suffix: str) -> None:
    server.files = {f"/model{suffix}": _archive(suffix, "top/saved/weights.pt")}
    wanted = variant(file="saved", url=f"{server.url}/model{suffix}", path="top/saved")
    assert (bring(tmp_path, wanted) / "weights.pt").read_bytes() == b"weights"
    (tmp_path / f"model{suffix}").write_bytes(server.files[f"/model{suffix}"])
    assert (bring(tmp_path, wanted, brought=tmp_path) / "weights.pt").read_bytes() == b"weights"


def test_a_tar_archive_that_would_write_outside_its_folder_is_refused(tmp_path: Path, server: FileServer) -> None:
    server.files = {"/model.tar.gz": _archive(".tar.gz", "../../../outside.pt")}
    with pytest.raises(SetupError, match="cannot be unpacked"):
        bring(tmp_path, variant(file="saved", url=f"{server.url}/model.tar.gz"))
    assert list(tmp_path.rglob("outside.pt")) == []


def test_a_zip_archive_cannot_write_outside_its_folder(tmp_path: Path, server: FileServer) -> None:
    server.files = {"/model.zip": _archive(".zip", "../../../outside.pt")}
    found = bring(tmp_path, variant(file="saved", url=f"{server.url}/model.zip"))
    assert [path.parent for path in tmp_path.rglob("outside.pt")] == [found.parent]


def _archive(suffix: str, name: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, b"weights")
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(b"weights")
            archive.addfile(entry, io.BytesIO(b"weights"))
    return buffer.getvalue()


def test_consent_is_asked_once_for_each_licence_and_remembered_with_its_date(tmp_path: Path) -> None:
    asked: list[str] = []

    def yes(wanted: Variant) -> str:
        asked.append(wanted.name)
        return "on the terminal"

    consent.require(tmp_path, variant("free"), yes)
    assert asked == []
    for name in ("one", "two", "one"):
        consent.require(tmp_path, variant(name, consent="Academic use alone.", licence="ASL"), yes)
    assert asked == ["one"]
    given = consent.given(tmp_path, variant("two", consent="Academic use alone.", licence="ASL"))
    assert given is not None
    assert given["how"] == "on the terminal"
    assert given["given"].startswith("20")
    consent.require(tmp_path, variant(consent="Academic use alone, and a fee.", licence="ASL"), yes)
    assert asked == ["one", "one"]


def test_without_consent_the_licence_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"ASL\. Academic use alone\.") as caught:
        consent.require(tmp_path, variant(consent="Academic use alone.", licence="ASL"), lambda _variant: "")
    assert "--accept-licence" in caught.value.hint
    assert not (tmp_path / consent.RECORD).exists()


@pytest.mark.parametrize(
    ("name", "family", "like", "message"),
    [
        ("sevennet", "lennard_jones", "", "name of another model"),
        ("../up", "lennard_jones", "", "cannot be a model's name"),
        ("mine", "", "", "family of the checkpoint is not known"),
        ("mine", "nothing", "", "no family 'nothing'"),
        ("mine", "sevennet", "lj-argon", "of the family lennard_jones"),
    ],
)
def test_an_own_checkpoint_needs_a_name_and_a_family(tmp_path: Path, name: str, family: str, like: str, message: str) -> None:
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=message):
        own.family_of(load(), own.OwnCheckpoint(tmp_path / "mine.json", name, family, like))


def test_a_name_that_a_family_claims_later_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.write(tmp_path / EXPORTS, {"lj-argon": {"family": "lennard_jones", "variant": {}}})
    monkeypatch.setenv("FORCEGATE_STATE", str(tmp_path))
    with pytest.raises(SetupError, match="lennard_jones claims by now") as caught:
        load()
    assert "--remove lj-argon" in caught.value.hint
    own.remove("lj-argon", tmp_path)
    assert load().resolve("lj-argon").checkpoint.source == "family"


def test_two_names_never_serve_the_same_bytes(tmp_path: Path) -> None:
    families = load([HERE])
    argon = families.resolve("lj-argon").checkpoint.sha256
    checkpoints.refuse_a_second_name(families, "lj-argon", argon, tmp_path)
    with pytest.raises(CheckpointMismatch, match="the bytes of lj-argon") as refused:
        checkpoints.refuse_a_second_name(families, "mine", argon, tmp_path)
    assert "Use lj-argon" in refused.value.hint
    records.write(tmp_path / RECORD, {"mace-mp-0-small": "a" * 64})
    with pytest.raises(CheckpointMismatch, match="mace-mp-0-small"):
        checkpoints.refuse_a_second_name(families, "mace-mp-0-medium", "a" * 64, tmp_path)


def test_two_exports_at_once_do_not_give_the_same_bytes_two_names(tmp_path: Path) -> None:
    weights, state = tmp_path / "weights.pt", tmp_path / "state"
    weights.write_bytes(b"weights")
    families = catalogue(variant("one"), variant("two"))
    repository = tmp_path / "repository"
    target = checkpoints.location(repository, families.resolve("two"))

    def export_two() -> str:
        staged = Staged(weights, ours=False, told="a disk")
        return checkpoints.place(families, families.resolve("two"), repository, tmp_path, state, lambda _variant, _path: staged)

    with ThreadPoolExecutor(1) as pool:
        with records.held(state / RECORD) as hashes:
            second = pool.submit(export_two)
            deadline = time.monotonic() + 20
            while not target.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            hashes["one"] = sha256(weights)
        with pytest.raises(CheckpointMismatch, match="the bytes of one"):
            second.result()
    assert records.read(state / RECORD) == {"one": sha256(weights)}
    assert not target.exists()


def test_checked_in_hashes_are_all_different() -> None:
    known = [v.checkpoint.sha256 for v in load([HERE]).variants.values() if v.checkpoint.sha256]
    assert len(known) > 15
    assert len(set(known)) == len(known)
