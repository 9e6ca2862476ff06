"""Uploaded structures: files and bodies that are read, kept, named and refused; and files that were made to do harm."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import pickle
import random
import time
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from forcegate import arrays
from forcegate.errors import BodyTooLarge, DeadlineExceeded, ForcegateError, InvalidRequest, InvalidStructure
from forcegate.structure import from_atoms
from frontend.decoder import Decoder
from frontend.requests import TASK, UPLOAD, Limits, Named, decode
from frontend.security.keys import KeyStore, Scope
from frontend.settings import Settings, load
from frontend.structures.packing import pack, unpack
from frontend.structures.preview import describe
from frontend.structures.store import StructureStore
from frontend.structures.upload import FORMATS, Upload, read
from frontend.tasks.submission import Submission
from frontend.telemetry import Call
from tests.service import ROOT, free_ports
from tests.unit.test_gateway_app import client, is_error

LIMITS = Limits(max_batch=4, max_atoms=1000)
ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
XYZ = "2\n\nAr 0 0 0\nAr 0 0 3.8\n"
PATH = "/api/v1/structures"


def settings(folder: Path, **changes: Any) -> Settings:
    return load(grpc_port=free_ports(1)[0], state=folder, root=ROOT, **changes)


def play(values: Settings, scene: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def steps() -> None:
        async with client(values) as gateway:
            await scene(gateway)

    asyncio.run(steps())


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


# Over REST


def test_a_structure_is_uploaded_looked_at_and_removed(tmp_path: Path) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        made = await gateway.post(PATH, files={"file": ("../salt.cif", rock_salt("cif").encode())})
        assert made.status_code == 201, made.text
        kept = made.json()
        where = made.headers["location"]
        assert where == f"{PATH}/{kept['structure_id']}"
        assert (kept["name"], kept["natoms"], kept["preview"]["spacegroup"]["number"]) == ("salt.cif", 2, 225)
        again = await gateway.post(PATH, files={"file": ("other.cif", rock_salt("cif").encode())})
        assert (again.status_code, again.json()["structure_id"]) == (200, kept["structure_id"])
        other = (
            await gateway.post(PATH, content=msgpack.packb({"atoms": ARGON}), headers={"Content-Type": "application/msgpack"})
        ).json()
        page = (await gateway.get(PATH, params={"limit": 1})).json()
        assert (page["total"], [each["structure_id"] for each in page["structures"]]) == (2, [other["structure_id"]])
        assert (await gateway.get(PATH, params={"offset": 1})).json()["structures"][0]["name"] == "other.cif"
        assert (await gateway.get(f"{where}/preview")).json()["preview"] == kept["preview"]
        atoms = (await gateway.get(f"{PATH}/{other['structure_id']}/")).json()["atoms"]
        assert (atoms["symbols"], atoms["positions"], atoms["cell"]) == (["Ar", "Ar"], ARGON["positions"], None)
        raw = await gateway.get(f"{PATH}/{other['structure_id']}", headers={"Accept": "application/msgpack; arrays=raw"})
        positions = msgpack.unpackb(raw.content, object_hook=arrays.unpack_hook)["atoms"]["positions"]
        np.testing.assert_array_equal(positions, ARGON["positions"])
        assert (await gateway.delete(where)).json() == {"structure_id": kept["structure_id"], "deleted": True}
        for wrong in (
            where,
            f"{where}/preview",
            f"{PATH}/..%2f..%2fetc",
            f"{PATH}/{'A' * 32}",
            f"{PATH}/%00",
            f"{PATH}/{'a' * 5000}",
        ):
            gone = await gateway.get(wrong)
            is_error(gone, 404, "not_found")
        is_error(await gateway.delete(where), 404, "not_found")
        assert "GET /api/v1/structures" in (await gateway.get(where)).json()["hint"]
        for limit in ("0", "501", "x", "-1"):
            is_error(await gateway.get(PATH, params={"limit": limit}), 400, "invalid_request")

    play(settings(tmp_path), scene)


def test_uploads_that_cannot_be_kept_are_typed(tmp_path: Path) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        async def refused(status: int, code: str, **request: Any) -> None:
            is_error(await gateway.post(PATH, **request), status, code)

        await refused(400, "invalid_request", json={})
        await refused(400, "invalid_request", content=b"")
        await refused(400, "invalid_request", json=[ARGON])
        await refused(400, "invalid_request", json={"atoms": {"format": "pickle", "text": XYZ}})
        await refused(400, "invalid_request", json={"structure_id": "a" * 32})
        await refused(400, "invalid_request", json={"atoms": ARGON, "structure_id": "a" * 32})
        await refused(400, "invalid_request", json={"atoms": {"structure_id": "a" * 32}})
        wrong_method = await gateway.put(PATH)
        is_error(wrong_method, 405, "method_not_allowed")
        assert wrong_method.headers["allow"] == "GET, POST"
        await refused(400, "invalid_request", json={"atoms": ARGON, "name": 3})
        await refused(400, "invalid_request", files={"file": ("a.traj", b"- of Ulm")})
        await refused(400, "invalid_request", content=b"x", headers={"Content-Type": "multipart/form-data"})
        await refused(400, "unsupported_media_type", content=b"x", headers={"Content-Type": "text/plain"})
        await refused(422, "invalid_structure", files={"file": ("a.cif", gzip.compress(b"data_x"))})
        await refused(422, "invalid_structure", json={"atoms": {"format": "cif", "text": "data_x"}})
        await refused(422, "non_finite_input", json={"atoms": {"symbols": ["Ar"], "positions": [[None, 0, 0]]}})
        await refused(422, "invalid_cell", json={"atoms": ARGON | {"cell": [0, 0, 0], "pbc": True}})
        await refused(
            413, "structure_too_large", json={"atoms": {"symbols": ["Ar"] * 6, "positions": [[9.0 * i, 0, 0] for i in range(6)]}}
        )
        await refused(413, "body_too_large", content=b"x" * (2**20 + 1))
        for name in range(2):
            shifted = {"symbols": ["Ar"], "positions": [[name, 0, 0]]}
            assert (await gateway.post(PATH, json={"atoms": shifted, "name": "\x00\x07"})).status_code == 201
        await refused(429, "too_many_structures", json={"atoms": ARGON})
        assert (await gateway.post(PATH, json={"atoms": shifted})).status_code == 200, "one that is there already is no more"

    play(settings(tmp_path, max_structures_per_user=2, max_atoms=5, max_body_mb=1), scene)


def test_nobody_sees_the_structures_of_another(tmp_path: Path) -> None:
    values = settings(tmp_path, keys="on")
    store = KeyStore(values)
    alice, bob, root, reader = (
        {"X-API-Key": store.create("k", user, scope)[0]}
        for user, scope in (("alice", Scope.COMPUTE), ("bob", Scope.COMPUTE), ("root", Scope.OPERATE), ("alice", Scope.READ))
    )
    store.close()

    async def scene(gateway: httpx.AsyncClient) -> None:
        is_error(await gateway.post(PATH, json={"atoms": ARGON}), 401, "unauthenticated")
        is_error(await gateway.post(PATH, json={"atoms": ARGON}, headers=reader), 403, "forbidden")
        mine = (await gateway.post(PATH, json={"atoms": ARGON}, headers=alice)).json()["structure_id"]
        his = (await gateway.post(PATH, json={"atoms": ARGON}, headers=bob | {"X-Forcegate-User": "alice"})).json()["structure_id"]
        assert mine != his
        assert (await gateway.get(f"{PATH}/{mine}", headers=reader)).status_code == 200
        is_error(await gateway.delete(f"{PATH}/{mine}", headers=reader), 403, "forbidden")
        for other in (bob, root):
            for path in (f"{PATH}/{mine}", f"{PATH}/{mine}/preview"):
                is_error(await gateway.get(path, headers=other), 404, "not_found")
            is_error(await gateway.delete(f"{PATH}/{mine}", headers=other), 404, "not_found")
        assert [(await gateway.get(PATH, headers=who)).json()["total"] for who in (alice, bob, root)] == [1, 1, 0]

    play(values, scene)


def test_structures_are_removed_after_their_time(tmp_path: Path) -> None:
    values, moment = settings(tmp_path, structure_retention_days=2, max_structures_per_user=1), 0.0
    first, second = (Upload("", "Ar", 1, pack(from_atoms(Atoms("Ar", [[x, 0, 0]]))), {}) for x in (0, 1))

    async def scene() -> None:
        nonlocal moment
        store = StructureStore(values, lambda: moment)
        try:
            kept, new = await store.keep("alice", first)
            assert new
            assert store.expires(kept) == 2 * 86_400
            moment = 1.5 * 86_400
            assert not (await store.keep("alice", first))[1]
            moment = 3.4 * 86_400
            assert (await store.find("alice", 9, 0))[0] == 1, "the second upload counts"
            moment = 3.6 * 86_400
            assert (await store.find("alice", 9, 0))[0] == 0
            assert await store.fetch("alice", [kept.id], 10**6) == {}
            assert (await store.keep("alice", second))[1], "what is over does not count"
        finally:
            await store.close()

    asyncio.run(scene())


def test_a_short_body_cannot_ask_for_more_than_a_long_one(tmp_path: Path) -> None:
    upload = Upload("", "Ar", 1, pack(from_atoms(Atoms("Ar"))), {})

    async def scene() -> None:
        store = StructureStore(settings(tmp_path))
        try:
            kept, _ = await store.keep("alice", upload)
            size = len(upload.content)
            assert len(await store.fetch("alice", [kept.id, "x", "b" * 32], size)) == 1
            assert await store.fetch("bob", [kept.id], size) == {}
            with pytest.raises(BodyTooLarge):
                await store.fetch("alice", [kept.id] * 2, size)
        finally:
            await store.close()

    asyncio.run(scene())


# An id in place of atoms

KEPT = "0123456789abcdef" * 2
GONE = "f" * 32
STORED = replace(LIMITS, stored={KEPT: from_atoms(Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]))})
MODEL = {"model_name": "lj-argon"}


def decoded(calculation: str, body: Any, limits: Limits = STORED) -> Any:
    return decode(calculation, json.dumps(body).encode(), "json", limits)


@pytest.mark.parametrize("place", [{"structure_id": KEPT}, {"atoms": {"structure_id": KEPT}}])
def test_an_id_stands_in_place_of_atoms(place: dict[str, Any]) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("single_point", MODEL | place),
        ("multi_model", {"model_names": ["lj-argon"]} | place),
        (f"{TASK}optimization", MODEL | place),
        (f"{TASK}interaction-energy", MODEL | place | {"guest": "CO2"}),
        (f"{TASK}multi-model", {"model_names": ["lj-argon"], "task": "optimization"} | place),
        (f"{TASK}batch", MODEL | {"task": "optimization", "atoms": [{"structure_id": KEPT}]}),
    ]
    for calculation, body in bodies:
        assert decoded(calculation, body, LIMITS) == Named((KEPT,)), calculation
        record = decoded(calculation, body)
        structure = record.structures[0] if isinstance(record, Submission) else record.structure
        assert structure.formula == "Ar2"
        if isinstance(record, Submission):
            assert KEPT not in json.dumps(record.parameters), "a task has its own copy"
            assert '"Ar"' in json.dumps(record.parameters)
    guest = {"guest": {"structure_id": KEPT}}
    body = MODEL | place | {"atoms": {"structure_id": GONE}} if "structure_id" not in place else MODEL | place
    assert set(decoded(f"{TASK}interaction-energy", body | guest, LIMITS).ids) >= {KEPT}
    assert decoded(f"{TASK}interaction-energy", MODEL | place | guest).guest.formula == "Ar2"


def test_a_batch_names_structures_beside_others() -> None:
    entries = [{"structure_id": KEPT}, ARGON, {"structure_id": GONE}, {"structure_id": KEPT, "charge": 1}]
    assert decoded("batch", MODEL | {"atoms": entries}, LIMITS) == Named((KEPT, GONE, KEPT))
    first, second, unknown, both = decoded("batch", MODEL | {"atoms": entries}).structures
    assert (first.formula, second.formula) == ("Ar2", "Ar2")
    assert (unknown.code, both.code) == ("not_found", "invalid_request")
    assert "charge" in both.detail


def test_ids_that_name_nothing_are_refused(tmp_path: Path) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        kept = (await gateway.post(PATH, json={"atoms": ARGON})).json()["structure_id"]
        me = {"X-Forcegate-User": "somebody.else"}
        for path in ("single_point", "optimization", "tasks/optimization", "multi_model", "tasks/multi-model"):
            where = f"/api/v1/{path}"
            asked = {"model_names": ["lj-argon"]} if "multi" in path else MODEL
            # There is no model behind this gateway: what could be read is refused for that.
            for form in ({"structure_id": kept}, {"atoms": {"structure_id": kept}}):
                answer = await gateway.post(where, json=asked | form)
                assert answer.status_code in (200, 409, 503), answer.text
                is_error(await gateway.post(where, json=asked | form, headers=me), 404, "not_found")
            for unknown in (GONE, "x", "../" * 20, "\x00", "a" * 10_000):
                refused = await gateway.post(where, json=asked | {"structure_id": unknown})
                is_error(refused, 404, "not_found")
                assert "GET /api/v1/structures" in refused.json()["hint"]
            is_error(await gateway.post(where, json=asked | {"structure_id": kept, "atoms": ARGON}), 400, "invalid_request")
            is_error(await gateway.post(where, json=asked | {"atoms": ARGON | {"structure_id": kept}}), 400, "invalid_request")
            is_error(await gateway.post(where, json=asked | {"structure_id": 7}), 400, "invalid_request")

    play(settings(tmp_path), scene)


def call(seconds: float) -> Call:
    made = Call("test", time.perf_counter())
    made.allow(seconds)
    return made
