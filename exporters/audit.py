"""``make audit``: every pinned package of every environment against the published advisories.

A finding is an error unless requirements/accepted.toml accepts it, with a reason and until a day. Exit status: 0 where there is
none, 1 with a table of those that there are, 2 where packages could not be looked up, which is no clean bill.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ACCEPTED = ROOT / "requirements" / "accepted.toml"
PROGRAM = ROOT / "environments" / "audit" / "bin" / "pip-audit"


@dataclass(frozen=True)
class Finding:
    """One advisory that concerns one pinned package; ``fixed_in`` are the versions without it."""

    package: str
    version: str
    id: str
    fixed_in: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Acceptance:
    """A finding that is known, and why it may stay, until a day."""

    id: str
    package: str
    until: date
    reason: str


def files() -> list[Path]:
    """The pinned requirements of the service, its tools, and every family."""
    return sorted([*(ROOT / "requirements").glob("*.txt"), *(ROOT / "forcefields").glob("*/requirements.txt")])


def accepted(path: Path = ACCEPTED) -> list[Acceptance]:
    """The list of accepted findings.

    Raises:
        ValueError: an entry lacks a field, or its reason is empty.
    """
    entries = tomllib.loads(path.read_text()).get("accepted", [])
    try:
        found = [Acceptance(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(f"{path.name}: {error}") from None
    for entry in found:
        if not (type(entry.until) is date and entry.reason.strip()):
            raise ValueError(f"{path.name}: {entry.id} needs a day and a reason")
    return found


def read(reports: Mapping[str, Any]) -> tuple[list[Finding], list[str]]:
    """The findings in pip-audit's JSON by requirements file, each package once, and what could not be looked up."""
    where: dict[tuple[str, str, str], list[str]] = {}
    fixes: dict[tuple[str, str, str], tuple[str, ...]] = {}
    unknown: set[str] = set()
    for name, report in reports.items():
        for package in report["dependencies"]:
            if "skip_reason" in package:
                unknown.add(package["name"])
                continue
            for advisory in package["vulns"]:
                key = (package["name"], package["version"], advisory["id"])
                where.setdefault(key, []).append(name)
                fixes[key] = tuple(advisory["fix_versions"])
    return [Finding(*key, fixes[key], tuple(names)) for key, names in sorted(where.items())], sorted(unknown)


def judged(findings: Iterable[Finding], known: Sequence[Acceptance], today: date) -> tuple[list[Finding], list[str]]:
    """The findings that nobody has accepted for today, and what is wrong with the list itself."""
    findings = list(findings)
    valid = {(entry.id, entry.package) for entry in known if entry.until >= today}
    open_ = [finding for finding in findings if (finding.id, finding.package) not in valid]
    there = {(finding.id, finding.package) for finding in findings}
    stale = [f"{entry.id} of {entry.package} is not found any more" for entry in known if (entry.id, entry.package) not in there]
    late = [f"{entry.id} of {entry.package} was accepted until {entry.until}" for entry in known if entry.until < today]
    return open_, stale + late


def _report(path: Path) -> Any:
    command = [
        str(PROGRAM),
        "--disable-pip",
        "--no-deps",
        "--format",
        "json",
        "--progress-spinner",
        "off",
        "--requirement",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"pip-audit failed on {path.relative_to(ROOT)}:\n{done.stderr[-2000:]}") from None


def main() -> int:
    """Audits; returns the exit status."""
    reports = {}
    for path in files():
        name = str(path.relative_to(ROOT))
        print(f"audit: {name}", file=sys.stderr)  # noqa: T201
        reports[name] = _report(path)
    findings, unknown = read(reports)
    open_, remarks = judged(findings, accepted(), datetime.now(UTC).date())
    for finding in open_:
        cure = f"fixed in {', '.join(finding.fixed_in)}" if finding.fixed_in else "no fixed version yet"
        print(f"{finding.id}: {finding.package} {finding.version}, {cure}; in {', '.join(finding.files)}")  # noqa: T201
    for remark in remarks:
        print(f"accepted.toml: {remark}")  # noqa: T201
    if open_:
        return 1
    if unknown:
        print(f"{len(unknown)} packages could not be looked up, so this is no clean bill: {', '.join(unknown[:8])} ...")  # noqa: T201
        return 2
    print("no finding that is not accepted")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
