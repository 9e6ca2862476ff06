"""/docs, /redoc and /openapi.json, with all that they show: no other host is asked for a script or a font."""

from __future__ import annotations

from importlib.resources import files

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html

from forcegate.errors import NotFound

router = APIRouter(include_in_schema=False)
ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
}
ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
    "<circle cx='8' cy='8' r='7' fill='%230969da'/></svg>"
)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The API as a document."""
    return Response(orjson.dumps(request.app.openapi()), media_type="application/json")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API to try out."""
    base = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{base}/openapi.json",
        title="Forcegate",
        swagger_js_url=f"{base}/docs/assets/swagger-ui-bundle.js",
        swagger_css_url=f"{base}/docs/assets/swagger-ui.css",
        swagger_favicon_url=ICON,
    )


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    """The API to read."""
    base = request.scope.get("root_path", "")
    return get_redoc_html(
        openapi_url=f"{base}/openapi.json",
        title="Forcegate",
        redoc_js_url=f"{base}/docs/assets/redoc.standalone.js",
        redoc_favicon_url=ICON,
        with_google_fonts=False,
    )


@router.get("/docs/assets/{name}")
async def asset(request: Request) -> Response:
    """One script or style of the two pages above, from the package that carries them."""
    name = str(request.path_params["name"])
    if name not in ASSETS:
        raise NotFound(f"There is no file {name[:60]!r} here.", "")
    content = (files("fastapi_offline") / "static" / name).read_bytes()
    return Response(content, media_type=ASSETS[name], headers={"Cache-Control": "public, max-age=86400"})
