"""Hooks of MkDocs: pages of the site that lie elsewhere in the repository, and links that lead out of the site.

The documents are written to be read in the repository, so their links are relative to it. In the site a link to a document goes to
its page, and one to a source file, which the site does not have, becomes its name.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"README.md": "quickstart.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Documents outside of ``docs``, and their pages."""
PUBLIC = (
    "forcegate.ForcegateCalculator",
    "forcegate.Client",
    "forcegate.AsyncClient",
    "forcegate.evaluation",
    "forcegate.relaxation",
    "forcegate.structure",
    "forcegate.errors",
)
LINK = re.compile(r"\[([^\]\n]*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are no files of ``docs``."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    text = "# Python\n\n" + "\n\n".join(f"::: {name}" for name in PUBLIC) + "\n"
    files.append(File.generated(config, "python.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the repository's links into those of the site; code is left alone."""
    name = page.file.src_uri
    source = next((origin for origin, made in ELSEWHERE.items() if made == name), f"docs/{name}")
    parts = re.split(r"(^```.*?^```[^\n]*$|`[^`\n]*`)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(lambda found: _link(found, source, name), part) for part in parts[::2]]
    return "".join(parts)


def _link(found: re.Match[str], source: str, page: str) -> str:
    text, target = found.groups()
    if re.match(r"[a-z]+:|#", target):
        return found[0]
    path, _, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if path in ELSEWHERE:
        path = ELSEWHERE[path]
    elif path.startswith("docs/"):
        path = path.removeprefix("docs/")
    elif path == "docs":
        path = "README.md"
    else:
        return text
    relative = posixpath.relpath(path, posixpath.dirname(page) or ".")
    return f"[{text}]({relative}{'#' + anchor if anchor else ''})"
