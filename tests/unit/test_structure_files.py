"""Files and bodies of structures: how they are read and described, what is refused, and those that were made to do harm."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from forcegate.errors import BodyTooLarge, DeadlineExceeded, ForcegateError, InvalidRequest, InvalidStructure
from forcegate.structure import from_atoms
from frontend.decoder import Decoder
from frontend.requests import UPLOAD, Limits
from frontend.structures.packing import pack, unpack
from frontend.structures.preview import describe
from frontend.structures.upload import FORMATS, read
from tests.unit.test_gateway_decoder import call

LIMITS = Limits(max_batch=4, max_atoms=1000)
ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
XYZ = "2\n\nAr 0 0 0\nAr 0 0 3.8\n"


def form(content: bytes, filename: str = "a.xyz", **fields: str) -> tuple[bytes, str]:
    """A form as httpx sends it: its body and its Content-Type."""
    request = httpx.Request("POST", "http://x", files={"file": (filename, content)}, data=fields)
    return request.read(), request.headers["content-type"]


def rock_salt(kind: str) -> str:
    text = io.BytesIO() if kind == "cif" else io.StringIO()
    write(text, bulk("NaCl", "rocksalt", a=5.64), format=kind)
    value = text.getvalue()
    return value.decode() if isinstance(value, bytes) else value


# What is read, and how it is described


def test_files_bodies_and_forms_give_the_same_structure() -> None:
    uploads = [
        read(json.dumps({"atoms": ARGON, "name": "pair"}).encode(), "json", LIMITS),
        read(json.dumps(ARGON).encode(), "json", LIMITS),
        read(json.dumps({"format": "xyz", "text": XYZ}).encode(), "json", LIMITS),
        read(msgpack.packb({"atoms": {"format": "XYZ", "text": XYZ}}), "msgpack", LIMITS),
        read(*form(XYZ.encode()), LIMITS),
        read(*form(XYZ.replace("\n", "\r\n").encode("utf-8-sig"), "pair.txt", format="xyz", name="pair"), LIMITS),
    ]
    assert {upload.content for upload in uploads} == {pack(unpack(uploads[0].content))}
    assert [upload.name for upload in uploads] == ["pair", "", "", "", "a.xyz", "pair"]
    assert {(upload.formula, upload.atoms) for upload in uploads} == {("Ar2", 2)}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.cif", "cif"), ("POSCAR", "vasp"), ("run.contcar", "vasp"), ("a.vasp", "vasp"), ("a.extxyz", "extxyz"), ("a.xsf", "xsf")],
)
def test_the_name_of_a_file_tells_its_format(name: str, kind: str) -> None:
    upload = read(*form(rock_salt(kind).encode(), name), LIMITS)
    assert upload.preview["spacegroup"] == {"number": 225, "symbol": "Fm-3m", "tolerance": 0.01}
    assert upload.preview["reduced_formula"] in ("ClNa", "NaCl")
    assert upload.preview["elements"]["Na"] == upload.preview["elements"]["Cl"]


def test_a_structure_survives_the_way_through_the_database() -> None:
    atoms = Atoms("HeAr", [[-0.0, 0, 0.1], [1, 2, 1 / 3]], cell=[[9, 0, 0], [1, 9, 0], [0, 0, 0]], pbc=[1, 1, 0])
    structure = from_atoms(atoms)
    found = unpack(pack(structure))
    for name in ("numbers", "positions", "cell", "pbc"):
        np.testing.assert_array_equal(getattr(found, name), getattr(structure, name))
        assert getattr(found, name).dtype == getattr(structure, name).dtype
    charged = from_atoms(Atoms("He", info={"charge": -1, "spin": 2}))
    assert (unpack(pack(charged)).charge, unpack(pack(charged)).spin) == (-1.0, 2)
    assert pack(charged) != pack(from_atoms(Atoms("He")))
    atoms.positions[0, 0] = 0.0
    assert pack(from_atoms(atoms)) == pack(structure), "a negative zero is a zero"


def test_the_preview_says_what_a_crystal_is() -> None:
    preview = describe(from_atoms(bulk("Cu", "fcc", a=3.6, cubic=True)))
    assert (preview["formula"], preview["reduced_formula"], preview["natoms"]) == ("Cu4", "Cu", 4)
    assert preview["cell"]["lengths"] == pytest.approx([3.6] * 3)
    assert preview["cell"]["angles"] == pytest.approx([90.0] * 3)
    assert preview["cell"]["volume"] == pytest.approx(3.6**3)
    assert preview["density"] == pytest.approx(4 * 63.546 * 1.66053907 / 3.6**3, rel=1e-4)
    assert preview["spacegroup"]["number"] == 225
    assert preview["warnings"] == []


def test_a_cell_that_spans_nothing_is_described_in_numbers() -> None:
    flat = describe(from_atoms(Atoms("Ar", cell=[[1.1, 1.1, 1.1], [2.2, 2.2, 2.2], [0, 0, 0]])))
    assert flat["cell"]["angles"] == pytest.approx([90.0, 90.0, 0.0], abs=1e-5)
    assert (flat["density"], flat["spacegroup"]) == (None, None)
    triclinic = Atoms("Ar", cell=[3, 4, 5, 80, 95, 110], pbc=True)
    assert describe(from_atoms(triclinic))["cell"]["angles"] == pytest.approx([80, 95, 110])


def test_the_preview_warns() -> None:
    def said(atoms: Atoms) -> str:
        return " ".join(describe(from_atoms(atoms))["warnings"])

    assert "no periodic direction" in said(Atoms("Ar"))
    assert "Every model refuses it" in said(Atoms("Ar2", [[0, 0, 0], [0, 0, 0.01]]))
    assert "Ar 0 and Ar 1, 0.50 A apart" in said(Atoms("Ar2", [[0, 0, 0], [0, 0, 0.5]]))
    assert "is the cell in A?" in said(bulk("Cu", "fcc", a=1.9))
    many = bulk("Cu", "fcc", a=3.6).repeat((13, 13, 13))
    assert "more than 2000 atoms" in said(many)
    assert describe(from_atoms(many))["spacegroup"] is None


# What is refused


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("a.traj", {}),
        ("a.pkl", {}),
        ("a.pickle", {}),
        ("a.json", {}),
        ("a.db", {}),
        ("a", {}),
        ("", {}),
        ("a.xyz", {"format": "traj"}),
        ("a.xyz", {"format": "json"}),
        ("a.xyz", {"format": "x" * 10_000}),
    ],
)
def test_formats_that_can_run_code_are_not_read(name: str, fields: dict[str, str], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("harm").touch, ())

    body, media = form(pickle.dumps(Harm()), name or "x", **fields)
    with pytest.raises(InvalidRequest) as refused:
        read(body, media, LIMITS)
    assert all(kind in refused.value.hint for kind in FORMATS)
    for kind in ("traj", "pickle", "json", "db", "vasp-xml", "", None, 3, ["xyz"]):
        with pytest.raises(InvalidRequest) as refused:
            read(json.dumps({"format": kind, "text": XYZ}).encode(), "json", LIMITS)
        assert "optimade" in refused.value.hint
    assert not tmp_path.joinpath("harm").exists()


def _zipped() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.xyz", XYZ)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(XYZ.encode()), "gzip"),
        (gzip.compress(b"0" * 50_000_000), "gzip"),
        (_zipped(), "zip"),
        (b"\xff\xfe" + XYZ.encode("utf-16-le"), "not text"),
        (XYZ.encode() + b"\x00", "not text"),
        (pickle.dumps(ARGON), "not text"),
        (b"", "has to hold"),
        (b"<!DOCTYPE x [<!ENTITY a 'b'>]>", "could not be read"),
    ],
    # Not the contents, which hold the time: two processes that share the tests have to call them the same.
    ids=["gzip", "gzip bomb", "zip", "UTF-16", "zero byte", "pickle", "empty", "XML"],
)
def test_what_is_no_text_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InvalidStructure, match=said):
        read(*form(content), LIMITS)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd.xyz", "..\\..\\a.xyz", "/etc/cron.d/a.xyz", "a\x00b.xyz", "~/.ssh/a.xyz", "\n.xyz"]
)
def test_a_path_in_a_name_is_a_label(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    upload = read(*form(XYZ.encode(), "x.xyz", name=name), LIMITS)
    assert upload.name.isprintable()
    body = form(XYZ.encode(), "NAME.xyz")[0].replace(b"NAME.xyz", name.replace("\n", "").replace("\\", "\\\\").encode())
    from_file = read(body, form(XYZ.encode())[1].partition("=")[0] + "=" + body[2 : body.index(b"\r\n")].decode(), LIMITS)
    assert not set("/\\\n\x00") & set(from_file.name)
    assert list(tmp_path.iterdir()) == []


def test_broken_forms_are_typed() -> None:
    body, media = form(XYZ.encode())
    for wrong, kind in (
        (body, "multipart/form-data"),
        (body, "multipart/form-data; boundary="),
        (body, "multipart/form-data; boundary=" + "b" * 100),
        (body, "multipart/form-data; boundary=other"),
        (body[:-20], media),
        (body[: len(body) // 2], media),
        (b"", media),
        (b"\r\n" * 1000, media),
        (body.replace(b"file", b"filf").replace(b"filename", b"filenames"), media),
    ):
        with pytest.raises(InvalidRequest):
            read(wrong, kind, LIMITS)
    assert read(body + b"more", media, LIMITS).atoms == 2, "what follows the end is not looked at"
    request = httpx.Request("POST", "http://x", files=[("file", ("a.xyz", XYZ.encode()))] * 9)
    with pytest.raises(InvalidRequest, match="parts"):
        read(request.read(), request.headers["content-type"], LIMITS)


def test_damaged_files_are_read_or_refused_by_name() -> None:
    rng = random.Random(7)
    words = (
        b"nan",
        b"inf",
        b"1e999",
        b"-1",
        b"0",
        b"X",
        b"loop_",
        b"\n",
        b"'",
        b"[]",
        b"null",
        b"1e-300",
        "\u00e9".encode(),
        b"\xff",
    )
    files = {"a.cif": "cif", "POSCAR": "vasp", "a.extxyz": "extxyz", "a.xsf": "xsf", "a.pdb": "proteindatabank", "a.gen": "gen"}
    whole = {name: rock_salt(kind).encode() for name, kind in files.items()}
    seen = set()
    for _ in range(100):
        for name, content in whole.items():
            damaged = bytearray(content)
            for _ in range(rng.randint(1, 3)):
                start = rng.randrange(len(damaged))
                damaged[start : start + rng.randint(0, 8)] = rng.choice(words)
            body, media = form(bytes(damaged), name)
            if rng.random() < 0.1:
                body = body[: rng.randrange(200)] + bytes([rng.randrange(256)]) + body[rng.randrange(200) :]
            try:
                json.dumps(read(body, media, LIMITS).preview, allow_nan=False)
                seen.add("read")
            except ForcegateError as error:
                seen.add(str(error.status))
    assert seen == {"read", "400", "422"}


def test_millions_of_sites_end_at_the_limits_of_a_decoder() -> None:
    """Time and memory both, and the next body is read as if nothing had been."""
    head = "data_x\n_cell_length_a 9\n_cell_length_b 9\n_cell_length_c 9\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
    head += "_cell_angle_gamma 90\nloop_\n_atom_site_label\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
    body, media = form((head + "H 0 0 0\n" * 1_000_000).encode(), "a.cif")
    small, small_media = form(XYZ.encode())

    async def scene() -> None:
        decoder = Decoder(LIMITS, processes=1)
        try:
            await decoder.warm()
            (process,) = decoder.running
            with pytest.raises(DeadlineExceeded):
                await decoder.decode(UPLOAD, body, media, call(0.2))
            assert process.returncode is not None, "it was killed"
        finally:
            await decoder.close()
        decoder = Decoder(LIMITS, processes=1, memory=220 << 20)
        try:
            with pytest.raises(BodyTooLarge, match="memory"):
                await decoder.decode(UPLOAD, body, media, call(60))
            assert (await decoder.decode(UPLOAD, small, small_media, call(60))).atoms == 2
        finally:
            await decoder.close()

    asyncio.run(scene())
