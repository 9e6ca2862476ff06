"""Rules and dashboards: promtool's cases, and no metric that nobody exports."""

from __future__ import annotations

import re

import yaml

from docker import dashboards
from frontend.tasks.worker_metrics import WorkerMetrics
from frontend.telemetry import Metrics
from tests.deploy.tools import run
from tests.service import ROOT

FOLDER = ROOT / "docker" / "prometheus"


def rules(kind: str) -> dict[str, str]:
    """The expressions of all rules of a kind, ``record`` or ``alert``, by their names."""
    found = [rule for name in ("rules", "alerts") for group in _read(name)["groups"] for rule in group["rules"]]
    return {rule[kind]: rule["expr"] for rule in found if kind in rule}


def metrics(expression: str) -> set[str]:
    """The metrics that an expression names, without what rules record."""
    return set(re.findall(r"(?<![\w:])(?:forcegate|nv|DCGM|probe)_\w+(?![\w:])", expression))


def expressions() -> list[str]:
    """Every expression of rules and dashboards."""
    return [*rules("record").values(), *rules("alert").values(), *dashboards.queries()]


def _read(name: str) -> dict:  # type: ignore[type-arg]
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text())  # type: ignore[no-any-return]


def test_rules_pass_promtool_and_every_alert_fires_and_is_silent() -> None:
    for command in (
        ["check", "rules", str(FOLDER / "rules.yml"), str(FOLDER / "alerts.yml")],
        ["test", "rules", str(FOLDER / "tests.yml")],
    ):
        done = run("promtool", *command)
        assert done.returncode == 0, done.stdout + done.stderr
    cases = {case["name"] for case in _read("tests")["tests"]}
    assert cases == {f"{alert} {word}" for alert in rules("alert") for word in ("fires", "is silent")}


def test_a_case_that_is_wrong_is_noticed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for name in ("rules", "alerts", "tests"):
        (tmp_path / f"{name}.yml").write_text((FOLDER / f"{name}.yml").read_text().replace("> 85", "> 95"))
    assert run("promtool", "test", "rules", str(tmp_path / "tests.yml")).returncode != 0


def test_the_configuration_of_prometheus_is_well_formed() -> None:
    done = run("promtool", "check", "config", str(FOLDER / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_of_ours_exist_and_recorded_names_too() -> None:
    suffixes = ("", "_total", "_bucket", "_sum", "_count", "_info")
    ours = [*Metrics().registry.collect(), *WorkerMetrics(1, list).registry.collect()]
    known = {family.name + suffix for family in ours for suffix in suffixes}
    known |= set(re.findall(r'"(forcegate_\w+)"', (ROOT / "forcefields" / "runtime" / "metrics.py").read_text()))
    for expression in expressions():
        assert {name for name in metrics(expression) if name.startswith("forcegate_")} <= known, expression
        assert set(re.findall(r"forcegate:[\w:]+", expression)) <= rules("record").keys(), expression


def test_every_alert_is_in_the_documents() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert set(re.findall(r"^\| `([A-Z]\w+)`", page, re.MULTILINE)) == rules("alert").keys()
