"""API keys: what is kept of them, what each scope may do, and that nobody else's tasks are seen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from forcegate.cli import application
from forcegate.client import Client
from forcegate.errors import ForcegateError, SetupError
from frontend.app import create_app
from frontend.gateway import main
from frontend.security import access, listening
from frontend.security.keys import KeyStore, Scope
from frontend.settings import Settings, load
from frontend.tasks import tables
from frontend.tasks.queue import DurableTasks
from frontend.tasks.task import Options
from tests.service import ROOT, free_ports
from tests.unit.test_gateway_app import client, is_error


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(grpc_port=free_ports(1)[0], state=tmp_path, root=ROOT, keys="on")


@pytest.fixture
def store(settings: Settings) -> Iterator[KeyStore]:
    made = KeyStore(settings)
    yield made
    made.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def play(settings: Settings, scene: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def steps() -> None:
        async with client(settings) as gateway:
            await scene(gateway)

    asyncio.run(steps())


def test_the_key_itself_is_nowhere_in_the_database(settings: Settings, store: KeyStore) -> None:
    token, key = store.create("laptop", "alice", Scope.COMPUTE)
    engine = sa.create_engine(tables.url(settings))
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM forcegate_keys").fetchall()
    engine.dispose()
    secret = token.rpartition(key.id)[2]
    assert len(secret) >= 43
    assert secret not in str(rows)
    assert secret not in repr(key)
    assert key.is_of(token)
    assert not key.is_of(token[:-1] + ("A" if token[-1] != "A" else "B"))


def test_every_operation_has_its_scope(settings: Settings) -> None:
    """A route that is added and forgotten needs the largest scope, and this list shows it."""
    document = create_app(settings).openapi()
    found: dict[Scope | None, set[str]] = {}
    for path, operations in document["paths"].items():
        for method in operations:
            found.setdefault(access.needed(method.upper(), path.replace("{", "").replace("}", "")), set()).add(f"{method} {path}")
    assert found[None] == {"get /", "get /health", "get /live", "get /ready"}
    assert {"post /api/v1/models/{name}/load", "post /api/v1/models/{name}/unload"} <= found[Scope.OPERATE]
    assert not [each for each in found[Scope.OPERATE] if "/tasks" in each or "/structures" in each]
    assert {"post /api/v1/single_point", "post /api/v1/tasks/optimization", "post /api/v1/tasks/{task_id}/cancel"} <= found[
        Scope.COMPUTE
    ]
    assert all(each.startswith("get ") for each in found[Scope.READ])
    assert "get /metrics" in found[Scope.READ]
    assert access.needed("POST", "/api/v1/something/new") is Scope.OPERATE
    assert access.needed("GET", "/api/v1/../health") is Scope.READ
    assert access.needed("GET", "/metrics", metrics_open=True) is None


def test_who_is_let_in(settings: Settings, store: KeyStore) -> None:
    look, calculate, operate = (store.create(str(scope), "alice", scope)[0] for scope in Scope)

    async def scene(gateway: httpx.AsyncClient) -> None:
        for path in ("/live", "/health", "/", "/docs", "/openapi.json"):
            assert (await gateway.get(path)).status_code == 200, path
        missing = await gateway.get("/api/v1/models")
        is_error(missing, 401, "unauthenticated")
        assert missing.headers["www-authenticate"] == "Bearer"
        assert "FORCEGATE_API_KEY" in missing.json()["hint"]
        for wrong in ("x", look[:-1], look[:-1] + ("A" if look[-1] != "A" else "B"), "fgk_0123456789abcdef_" + "a" * 43, "ü"):
            is_error(await gateway.get("/api/v1/models", headers={"X-API-Key": wrong.encode("latin-1")}), 401, "unauthenticated")  # type: ignore[dict-item]
        is_error(await gateway.get("/api/v1/models", headers={"Authorization": "Basic eDp5"}), 401, "unauthenticated")
        assert (await gateway.get("/api/v1/models", headers=bearer(look))).status_code == 200
        assert (await gateway.get("/metrics", headers={"X-API-Key": look})).status_code == 200
        is_error(await gateway.get("/metrics"), 401, "unauthenticated")
        refused = await gateway.post("/api/v1/single_point", headers=bearer(look), json={})
        is_error(refused, 403, "forbidden")
        assert refused.headers["connection"] == "close", "its body was not read"
        is_error(await gateway.post("/api/v1/single_point", headers=bearer(calculate), json={}), 400, "invalid_request")
        is_error(await gateway.post("/api/v1/single_point/", json={}), 401, "unauthenticated")
        is_error(await gateway.post("/api/v1/models/lj-argon/load", headers=bearer(calculate)), 403, "forbidden")
        is_error(await gateway.post("/api/v1/models/none/load", headers=bearer(operate)), 404, "unknown_model")
        is_error(await gateway.get("/nothing", headers=bearer(look)), 404, "not_found")

    play(settings, scene)


def test_a_key_counts_at_once_and_ends_within_seconds(settings: Settings, store: KeyStore) -> None:
    short, _ = store.create("short", "alice", Scope.READ, seconds=2.5)

    async def scene(gateway: httpx.AsyncClient) -> None:
        async def status(token: str) -> int:
            return (await gateway.get("/api/v1/models", headers=bearer(token))).status_code

        assert await status(short) == 200
        await asyncio.sleep(2 * access.SOONEST_SECONDS)
        fresh, key = await asyncio.to_thread(store.create, "fresh", "bob", Scope.READ)
        assert await status(fresh) == 200, "made after the gateway was started"
        await asyncio.to_thread(store.revoke, key.id)
        deadline = time.monotonic() + 5
        while await status(fresh) == 200 or await status(short) == 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        refused = await gateway.get("/api/v1/models", headers=bearer(fresh))
        is_error(refused, 401, "unauthenticated")
        assert "revoked" in refused.json()["detail"]
        assert "expired" in (await gateway.get("/api/v1/models", headers=bearer(short))).json()["detail"]

    play(settings, scene)


def test_wrong_keys_do_not_keep_the_database_busy(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    real = store.all

    def counted() -> list[Any]:
        nonlocal reads
        reads += 1
        return real()

    monkeypatch.setattr(store, "all", counted)

    async def scene() -> None:
        gatekeeper = access.Gatekeeper(store)
        for number in range(200):
            with pytest.raises(ForcegateError, match="not known"):
                await gatekeeper._key(f"fgk_{number:016x}_{'a' * 43}")
        assert reads <= 1 + 10

    started = time.monotonic()
    asyncio.run(scene())
    assert time.monotonic() - started < 1.0


def test_tasks_are_their_users_alone(settings: Settings, store: KeyStore) -> None:
    alice, bob = (store.create(name, name, Scope.COMPUTE)[0] for name in ("alice", "bob"))
    laptop, operator = store.create("laptop", "alice", Scope.COMPUTE)[0], store.create("root", "root", Scope.OPERATE)[0]

    async def scene(gateway: httpx.AsyncClient) -> None:
        tasks = DurableTasks(settings)
        view = await tasks.submit("optimization", {}, ["lj-argon"], Options(), "alice")
        await tasks.close()
        path = f"/api/v1/tasks/{view.id}"
        # A name in a header is no proof of anything.
        as_alice = bearer(bob) | {"X-Forcegate-User": "alice"}
        for method, each in (("GET", ""), ("GET", "/result"), ("GET", "/logs"), ("GET", "/events"), ("GET", "/trajectory")):
            is_error(await gateway.request(method, path + each, headers=as_alice), 404, "not_found")
        for each in ("/cancel", "/retry"):
            is_error(await gateway.post(path + each, headers=as_alice), 404, "not_found")
        assert (await gateway.get(f"{path}/artifacts", headers=as_alice)).status_code == 404
        listed = await gateway.get("/api/v1/tasks?user=alice", headers=as_alice)
        assert listed.json()["total"] == 0
        queue = (await gateway.get("/api/v1/scheduler/queue", headers=as_alice)).json()
        assert (queue["waiting"], queue["listed"]) == (1, 0)
        for token in (alice, laptop, operator):
            assert (await gateway.get(path, headers=bearer(token))).json()["user"] == "alice"
        assert (await gateway.get("/api/v1/tasks", headers=bearer(laptop))).json()["total"] == 1
        assert (await gateway.get("/api/v1/tasks?user=me", headers=bearer(operator))).json()["total"] == 0
        assert (await gateway.get("/api/v1/scheduler/queue", headers=bearer(alice))).json()["listed"] == 1
        assert (await gateway.post(f"{path}/cancel", headers=bearer(alice))).json()["status"] == "CANCELLED"

    play(settings, scene)


def test_where_keys_are_needed(settings: Settings, store: KeyStore) -> None:
    for host, needed in (("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("", True), ("gpu1", True)):
        assert listening.keys_needed(load(host=host, state=settings.state)) is needed, host
    with pytest.raises(SetupError, match="forcegate keys create"):
        listening.check(settings)
    with pytest.raises(SetupError, match="without keys"):
        listening.check(load(host="0.0.0.0", state=settings.state, keys="off"))
    listening.check(load(state=settings.state))
    store.create("old", "alice", Scope.OPERATE, seconds=0.0)
    with pytest.raises(SetupError, match="no valid one"):
        listening.check(settings)
    store.create("new", "alice", Scope.READ)
    listening.check(settings)
    listening.check(load(host="0.0.0.0", state=settings.state))


def test_a_gateway_on_a_network_does_not_start_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCEGATE_HOST", "0.0.0.0")
    monkeypatch.setenv("FORCEGATE_STATE", str(tmp_path))
    assert main() == 2
    assert "forcegate keys create" in capsys.readouterr().err


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCEGATE_STATE", str(tmp_path))
    run = CliRunner()
    made = run.invoke(application(), ["keys", "create", "laptop", "--user", "alice", "--expires", "90d"])
    token = made.stdout.strip()
    assert made.exit_code == 0
    assert access.id_of(token) is not None
    listed = run.invoke(application(), ["keys", "list", "--json"])
    assert '"state": "valid"' in listed.stdout
    assert token not in listed.stdout
    assert token.split("_", 2)[2] not in listed.stdout  # the secret may hold further underscores
    identifier = str(access.id_of(token))
    assert run.invoke(application(), ["keys", "revoke", identifier]).exit_code == 0
    assert '"state": "revoked"' in run.invoke(application(), ["keys", "list", "--json"]).stdout
    for wrong in (["revoke", "nothing"], ["create", "x", "--expires", "soon"], ["create", "x", "--user", "a b"]):
        assert isinstance(run.invoke(application(), ["keys", *wrong]).exception, ForcegateError)


def test_clients_send_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCEGATE_API_KEY", "fgk_of_the_environment")
    with Client("http://127.0.0.1:1") as environment, Client("http://127.0.0.1:1", api_key="fgk_own") as own:
        assert environment.headers["Authorization"] == "Bearer fgk_of_the_environment"
        assert own.headers["Authorization"] == "Bearer fgk_own"
    monkeypatch.delenv("FORCEGATE_API_KEY")
    with Client("http://127.0.0.1:1") as without:
        assert "Authorization" not in without.headers
    with pytest.raises(ForcegateError, match="no key has"):
        Client("http://127.0.0.1:1", api_key="a\r\nX-Evil: 1")
