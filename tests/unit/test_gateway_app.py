"""The application without a Triton behind it: its pages, its errors, its limits, and its documentation."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
import uvicorn

from forcegate.errors import BY_CODE, ForcegateError
from frontend import documentation
from frontend.app import create_app
from frontend.settings import Settings, load
from tests.service import free_ports

ROOT = Path(__file__).parents[2]
ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}
SINGLE = {"model_name": "lj-argon", "atoms": ARGON}


@asynccontextmanager
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        # Errors of the application itself fail the test instead of becoming answers.
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
            yield made


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., None]:
    """Runs a scene with a client of a gateway whose Triton does not exist."""

    def run(scene: Callable[[httpx.AsyncClient], Awaitable[None]], **changes: Any) -> None:
        settings = load(grpc_port=free_ports(1)[0], state=tmp_path, root=ROOT, **changes)

        async def steps() -> None:
            async with client(settings) as made:
                await scene(made)

        asyncio.run(steps())

    return run


def is_error(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"detail", "code", "retryable", "hint"}
    assert (body["code"], body["retryable"]) == (code, BY_CODE[code].retryable)
    assert body["detail"]
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_pages_answer_while_nothing_is_behind_them(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        assert (await gateway.get("/live")).json() == {"status": "alive"}
        is_error(await gateway.get("/ready"), 503, "model_not_ready")
        health = (await gateway.get("/health")).json()
        assert (health["status"], health["gateway"], health["available_workers"]) == ("unavailable", "healthy", 0)
        assert health["inference_server"] == {"reachable": False, "seconds_since_seen": None}
        models = (await gateway.get("/api/v1/models")).json()
        assert models["total"] == len(models["models"]) > 5
        assert models["ready"] == 0
        assert (await gateway.get("/api/v1/services")).json()["services"]["sevennet"]["package"] == "sevenn"
        assert (await gateway.get("/api/v1/models/7net-0")).json()["name"] == "sevennet-0"
        assert 'forcegate_build_info{python="' in (await gateway.get("/metrics")).text

    play(scene)


def test_trailing_slashes_are_accepted(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        for path in ("/live/", "/health/", "/api/v1/models/", "/api/v1/models/chgnet/", "/docs/", "/openapi.json/"):
            assert (await gateway.get(path)).status_code == 200, path
        is_error(await gateway.post("/api/v1/single_point/", json={}), 400, "invalid_request")

    play(scene)


def test_every_error_has_one_form(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        is_error(await gateway.get("/nothing/here"), 404, "not_found")
        is_error(await gateway.get("/api/v1/models/sevenet-0"), 404, "unknown_model")
        wrong_method = await gateway.delete("/health")
        is_error(wrong_method, 405, "method_not_allowed")
        assert wrong_method.headers["allow"] == "GET"
        is_error(await gateway.get("/api/v1/single_point"), 405, "method_not_allowed")
        is_error(await gateway.post("/api/v1/single_point", content=b"{"), 400, "invalid_request")
        is_error(await gateway.post("/api/v1/batch", data={"a": "b"}), 400, "unsupported_media_type")
        is_error(await gateway.post("/api/v1/single_point", json=SINGLE | {"model_name": "x"}), 404, "unknown_model")
        is_error(await gateway.post("/api/v1/single_point", json=SINGLE | {"dispersion": "d4"}), 400, "invalid_request")
        is_error(await gateway.post("/api/v1/single_point", json=SINGLE), 503, "model_not_ready")
        is_error(
            await gateway.post("/api/v1/multi_model", json={"model_names": ["chgnet"], "task": "dance", "atoms": ARGON}),
            422,
            "unsupported_task",
        )
        is_error(
            await gateway.post("/api/v1/multi_model", json={"model_names": ["chgnet", "chgnet-0.3.0"], "atoms": ARGON}),
            400,
            "invalid_request",
        )
        for timeout in ("0", "-1", "nan", "soon", "1e9"):
            refused = await gateway.post("/api/v1/single_point", json=SINGLE, headers={"X-Forcegate-Timeout": timeout})
            is_error(refused, 400, "invalid_request")

    play(scene)


def test_errors_come_in_the_format_that_is_accepted(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        for path in ("/nothing", "/api/v1/models/x"):
            response = await gateway.get(path, headers={"Accept": "application/msgpack"})
            assert response.headers["content-type"] == "application/msgpack"
            assert msgpack.unpackb(response.content)["code"] in BY_CODE

    play(scene)


@pytest.mark.parametrize("path", ["/api/v1/models/lj-argon", "/api/v1/single_point"])
def test_an_error_that_nobody_has_foreseen_has_that_form_too(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the framework answers or, for the paths that have to be fast, nobody but us."""

    def entry(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("frontend.triton.directory.Directory.entry", entry)
    app = create_app(load(grpc_port=free_ports(1)[0], state=tmp_path, root=ROOT))

    async def steps() -> httpx.Response:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as made:
                if path.endswith("single_point"):
                    return await made.post(path, json=SINGLE)
                return await made.get(path)

    response = asyncio.run(steps())
    body = response.json()
    assert (response.status_code, set(body)) == (500, {"detail", "code", "retryable", "hint"})
    assert body["code"] == ForcegateError.code
    assert response.headers["X-Request-ID"]
    assert "request id" in response.json()["hint"]


def test_a_long_body_is_refused_without_being_read(play: Callable[..., None]) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    async def scene(gateway: httpx.AsyncClient) -> None:
        is_error(await gateway.post("/api/v1/batch", content=b" " * (3 << 20)), 413, "body_too_large")
        is_error(await gateway.post("/api/v1/batch", content=endless()), 413, "body_too_large")
        assert sent <= (2 << 20) + (2 << 16)

    play(scene, max_body_mb=2)


def test_a_body_that_never_starts_meets_the_deadline_and_holds_up_nothing(tmp_path: Path) -> None:
    (port, nothing) = free_ports(2)
    settings = load(port=port, grpc_port=nothing, state=tmp_path, root=ROOT, drain_seconds=20)
    head = "POST /api/v1/single_point HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nX-Forcegate-Timeout: 0.5\r\n\r\n"

    async def steps() -> None:
        server = uvicorn.Server(uvicorn.Config(create_app(settings), port=port, log_config=None, timeout_graceful_shutdown=20))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode())
        await asyncio.sleep(0.1)
        started = time.monotonic()
        server.should_exit = True
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"connection: close" in answer.lower()
        await serving
        assert time.monotonic() - started < 5
        writer.close()

    asyncio.run(steps())


def test_more_work_than_there_is_room_for_is_refused_at_once(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        started = time.monotonic()
        response = await gateway.post(
            "/api/v1/multi_model", json={"model_names": ["chgnet", "sevennet-0", "lj-argon"], "atoms": ARGON}
        )
        is_error(response, 400, "invalid_request")
        assert time.monotonic() - started < 1

    play(scene, max_in_flight=2)


def test_request_ids_are_taken_where_they_are_sane_and_always_come_back(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        assert (await gateway.get("/live", headers={"X-Request-ID": "run-7:a.b_c"})).headers["x-request-id"] == "run-7:a.b_c"
        for wild in ("a b", "x" * 129, '"><script>', "", "a\tb"):
            given = (await gateway.get("/nothing", headers={"X-Request-ID": wild})).headers["x-request-id"]
            assert re.fullmatch("[0-9a-f]{32}", given)

    play(scene)


def test_labels_of_metrics_are_templates_and_known_names(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        await gateway.get("/one-of-many/paths")
        await gateway.get("/api/v1/models/somebodys-typo")
        await gateway.post("/api/v1/single_point", json=SINGLE | {"model_name": "another-typo"})
        await gateway.request("INVENTED", "/live")
        text = (await gateway.get("/metrics")).text
        assert not any(word in text for word in ("one-of-many", "typo", "INVENTED"))
        assert 'route="unmatched"' in text
        assert 'route="/api/v1/models/{name}"' in text
        assert 'forcegate_gateway_rejected_total{code="unknown_model"} 2.0' in text

    play(scene)


def test_the_welcome_page_shows_models_to_people_and_json_to_programs(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        page = await gateway.get("/", headers={"Accept": "text/html,*/*"})
        assert page.headers["content-type"].startswith("text/html")
        assert "sevennet-0" in page.text
        assert "curl -s http://gateway/api/v1/single_point" in page.text
        hostile = await gateway.get("/", headers={"Accept": "text/html", "Host": "x<script>"})
        assert "<script>" not in hostile.text
        program = (await gateway.get("/")).json()
        assert program["models"].keys() >= {"sevennet-0", "chgnet-0.3.0"}

    play(scene)


def test_the_documentation_needs_no_other_host(play: Callable[..., None]) -> None:
    async def scene(gateway: httpx.AsyncClient) -> None:
        for page in ("/docs", "/redoc"):
            text = (await gateway.get(page)).text
            loaded = re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*["']([^"']+)""", text)
            paths = [reference for reference in loaded if not reference.startswith("data:")]
            assert len(paths) >= 2, text
            for path in paths:
                assert path.startswith("/"), f"{page} loads {path}"
                assert (await gateway.get(path)).status_code == 200
        is_error(await gateway.get("/docs/assets/../../app.py"), 404, "not_found")
        is_error(await gateway.get("/docs/assets/core.py"), 404, "not_found")

    play(scene)


def test_the_committed_document_is_the_one_that_is_served(play: Callable[..., None]) -> None:
    committed = (ROOT / documentation.COMMITTED).read_bytes()
    assert committed == documentation.rendered(), "run `python -m frontend.documentation`"

    async def scene(gateway: httpx.AsyncClient) -> None:
        assert (await gateway.get("/openapi.json")).json() == json.loads(committed)

    play(scene)


def test_every_operation_documents_its_errors_with_codes_that_exist() -> None:
    document = create_app(load()).openapi()
    named = 0
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("description") or operation.get("summary"), path
            for status, response in operation["responses"].items():
                codes = re.findall(r"`([a-z_0-9]+)`", response["description"]) if int(status) >= 400 else []
                named += len(codes)
                assert all(BY_CODE[code].status == int(status) for code in codes)
    assert named > 30


def test_the_documented_examples_are_read_by_the_decoder() -> None:
    import orjson

    from frontend.requests import Limits, decode

    document = create_app(load()).openapi()
    read = 0
    for name in ("single_point", "batch", "multi_model"):
        content = document["paths"][f"/api/v1/{name}"]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            decode(name, orjson.dumps(example["value"]), "json", Limits(10, 100))  # type: ignore[arg-type]
            read += 1
    assert read >= 4
