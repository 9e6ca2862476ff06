"""requirements/service.txt: what the service needs to run, without the tools of its tests, in the versions of gateway.txt."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("calculations", "serve")


def service() -> str:
    """The text of the file: every package that is reached from the project's dependencies, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in EXTRAS for line in project["optional-dependencies"][extra])]
    pins = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "requirements" / "gateway.txt").read_text(), re.MULTILINE))
    found: dict[str, set[str]] = {}
    open_ = [Requirement(line) for line in wanted]
    while open_:
        requirement = open_.pop()
        name = canonicalize_name(requirement.name)
        known = found.setdefault(name, set())
        new = ({""} | requirement.extras) - known
        known |= new
        for line in distribution(name).requires or () if new else ():
            asked = Requirement(line)
            if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in new):
                open_.append(asked)
    return "".join(f"{name}=={pins[name]}\n" for name in sorted(found))
