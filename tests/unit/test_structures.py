"""Uploaded structures over REST: kept, looked at, removed, and named by their ids in place of atoms."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from ase import Atoms

from forcegate import arrays
from forcegate.errors import BodyTooLarge
from forcegate.structure import from_atoms
from frontend.requests import TASK, Limits, Named, decode
from frontend.security.keys import KeyStore, Scope
from frontend.settings import Settings, load
from frontend.structures.packing import pack
from frontend.structures.store import StructureStore
from frontend.structures.upload import Upload
from frontend.tasks.submission import Submission
from tests.service import ROOT, free_ports
from tests.unit.test_api_keys import play
from tests.unit.test_gateway_app import is_error
from tests.unit.test_structure_files import ARGON, LIMITS, XYZ, rock_salt

PATH = "/api/v1/structures"


def settings(folder: Path, **changes: Any) -> Settings:
    return load(grpc_port=free_ports(1)[0], state=folder, root=ROOT, **changes)


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


def test_the_bytes_of_a_user_s_structures_are_bounded_and_a_deletion_makes_room(tmp_path: Path) -> None:
    def large(first: float) -> dict[str, Any]:
        # 28 bytes an atom: two of these are more than a MB, one is not.
        grid = np.stack(np.meshgrid(*[3.8 * np.arange(28)] * 3), axis=-1).reshape(-1, 3)
        return {"atoms": {"numbers": [18] * len(grid), "positions": (grid + first).tolist()}}

    async def scene(gateway: httpx.AsyncClient) -> None:
        me, other = {"X-Forcegate-User": "alice"}, {"X-Forcegate-User": "bob"}
        first = await gateway.post(PATH, json=large(0.0), headers=me)
        assert first.status_code == 201, first.text
        assert (await gateway.post(PATH, json=large(0.0), headers=me)).status_code == 200, "one that is there already takes no more"
        refused = await gateway.post(PATH, json=large(1.0), headers=me)
        is_error(refused, 429, "too_many_structures")
        assert "Your 1 structures take 0.6 MB of the 1 that one user's may" in refused.json()["detail"]
        assert (await gateway.post(PATH, json={"atoms": ARGON}, headers=me)).status_code == 201, "a small one has room"
        assert (await gateway.post(PATH, json=large(1.0), headers=other)).status_code == 201, "it is of each user"
        assert (await gateway.delete(first.headers["location"], headers=me)).status_code == 200
        assert (await gateway.post(PATH, json=large(1.0), headers=me)).status_code == 201

    play(settings(tmp_path, max_structures_mb_per_user=1), scene)


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
