"""The page at / for people: the models, how they are, and a line to try."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from starlette.responses import HTMLResponse

import forcegate
from frontend.triton.directory import READY, Entry

_ATOMS = {
    "symbols": ["Na", "Cl"],
    "positions": [[0, 0, 0], [2.82, 2.82, 2.82]],
    "cell": [[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]],
}
_ARGON = {"symbols": ["Ar", "Ar"], "positions": [[0, 0, 0], [0, 0, 3.8]]}

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{margin:0}p.sub{margin:.2rem 0 1.5rem;color:#57606a}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.4rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}th{color:#57606a;font-weight:600}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.4em;background:#8c959f}
.ready .dot{background:#1a7f37}.loading .dot{background:#bf8700}.failed .dot,.missing .dot{background:#cf222e}
pre{background:#f6f8fa;border:1px solid #d0d7de;border-radius:6px;padding:.8rem;overflow-x:auto;white-space:pre-wrap}
small{color:#57606a}a{color:#0969da}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}pre{background:#161b22;border-color:#30363d}
th,td{border-color:#30363d}p.sub,th,small{color:#8d96a0}a{color:#4493f8}}
"""


def curl(base: str, states: Mapping[str, str]) -> str:
    """A command that gets an answer from the first model that is ready, or would once one is."""
    ready = [name for name, state in states.items() if state == READY]
    crystals = [name for name in ready if name != "lj-argon"]
    model = (crystals or ready or ["sevennet-0"])[0]
    body = json.dumps({"model_name": model, "atoms": _ARGON if model == "lj-argon" else _ATOMS})
    return f"curl -s {base}/api/v1/single_point -H 'Content-Type: application/json' -d '{body}'"


def page(base: str, entries: Sequence[Entry]) -> HTMLResponse:
    """The page; it needs nothing from anywhere else, and is fetched anew every ten seconds."""
    rows = "".join(_row(entry) for entry in sorted(entries, key=lambda entry: entry.state != READY))
    example = curl(base, {entry.variant.name: entry.state for entry in entries})
    return HTMLResponse(
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Forcegate</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><meta http-equiv="refresh" content="10">
<style>{_STYLE}</style></head><body><h1>Forcegate</h1>
<p class="sub">Machine-learned force fields, version {escape(forcegate.__version__)} ·
<a href="docs">try it in the browser</a> · <a href="redoc">reference</a> ·
<a href="health">health</a> · <a href="metrics">metrics</a></p>
<table><tr><th>Model</th><th>State</th><th>Functional</th><th>About</th></tr>{rows}</table>
<h2>Try it</h2><pre>{escape(example)}</pre></body></html>"""
    )


def _row(entry: Entry) -> str:
    variant = entry.variant
    names = escape(variant.name) + (f"<br><small>{escape(', '.join(variant.aliases))}</small>" if variant.aliases else "")
    about = escape(variant.summary)
    if entry.error is not None:
        about += f"<br><small>{escape(entry.error.detail)} {escape(entry.error.hint)}</small>"
    functional = " / ".join(variant.functional_of(head) for head in variant.heads) or variant.functional
    return (
        f'<tr class="{escape(entry.state.split()[0])}"><td><a href="api/v1/models/{escape(variant.name)}">{names}</a></td>'
        f'<td><span class="dot"></span>{escape(entry.state)}</td><td>{escape(functional)}</td><td>{about}</td></tr>'
    )
