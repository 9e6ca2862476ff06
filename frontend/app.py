"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

import forcegate
from forcegate.errors import ForcegateError, InvalidRequest, MethodNotAllowed, NotFound
from frontend import documentation
from frontend.bodies import error_response
from frontend.middleware import EveryRequest, broken
from frontend.routes import calculations, models, pages, scheduler, service, structures, task_files, tasks, waited
from frontend.service import Service, call_of, service_of
from frontend.settings import Settings

_MODULES = (service, models, scheduler, calculations, waited, structures, tasks, task_files, pages)
_ROUTES = [route for module in _MODULES for route in module.router.routes if isinstance(route, Route)]


class Gateway(FastAPI):
    """The application; its OpenAPI document is completed by ``frontend.documentation``."""

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; ``front`` is around everything, the framework's own layers too."""
        scope["app"] = self
        await self.front(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = documentation.complete(
                get_openapi(title=self.title, version=self.version, description=self.description, routes=self.routes)
            )
        return self.openapi_schema


def create_app(settings: Settings) -> Gateway:
    """The gateway for ``settings``. Nothing is opened before the application is started."""
    parts = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with parts.running():
            yield

    app = Gateway(
        title="Forcegate",
        version=forcegate.__version__,
        description=documentation.DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers={ForcegateError: _typed, HTTPException: _framework, Exception: _unforeseen},
    )
    app.state.service = parts
    app.front = EveryRequest(
        super(Gateway, app).__call__,
        parts.metrics,
        calculations.DIRECT,
        _typed,
        parts.admit if parts.gatekeeper else None,
        parts.tracing,
    )
    if settings.cors_origins:
        app.front = CORSMiddleware(
            app.front,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "X-API-Key", "Content-Type", "Accept", "Last-Event-ID", "X-Request-ID", "traceparent"),
            expose_headers=("X-Request-ID", "Retry-After", "Location"),
        )
    for routes in _MODULES:
        app.include_router(routes.router)
    return app


async def _typed(request: Request, error: Exception) -> Response:
    assert isinstance(error, ForcegateError)
    call = call_of(request)
    call.code = error.code
    return error_response(error, call.accept, error.retry_after or service_of(request).admission.retry_after)


async def _unforeseen(request: Request, _error: Exception) -> Response:
    """The framework raises the error again when this is sent, so that it is logged."""
    return await _typed(request, broken())


async def _framework(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself, in the form of all other errors."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:80]
    typed: ForcegateError
    if error.status_code == 404:
        typed = NotFound(f"There is no page {path!r}.", "GET /docs lists them.")
    elif error.status_code == 405:
        typed = MethodNotAllowed(f"{path!r} does not take {request.method[:20]!r}.", "The Allow header names what it takes.")
    else:
        typed = InvalidRequest("The request cannot be read.")
    response = await _typed(request, typed)
    if error.status_code == 405 and error.headers:
        response.headers.update(error.headers)
        # A path may be several routes, one for each method, and the framework names those of the first. Others that match are of
        # another path: /tasks/optimization is no task of that name.
        found = [route for route in _ROUTES if route.matches(request.scope)[0] is Match.PARTIAL]
        methods = {method for route in found if route.path == found[0].path for method in route.methods or ()}
        response.headers["Allow"] = ", ".join(sorted(methods))
    return response
