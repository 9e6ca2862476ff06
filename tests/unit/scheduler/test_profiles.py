"""Placement profiles: those that come along say what they are meant to, and a mistake is told with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forcefields import catalogue as catalogues
from forcefields.catalogue import Catalogue
from forcegate.cli import application
from forcegate.errors import SetupError, UnknownModel
from frontend import settings
from frontend.scheduler import profile as profiles
from frontend.scheduler.footprint import Footprints
from frontend.scheduler.plan import devices_for, plan
from frontend.supervisor.checks import check_machine
from tests.service import free_ports

VALID = """\
description: two GPUs
devices: {kind: gpu, count: 2, memory_gb: 80}
groups:
  - families: [mace]
    devices: [0]
  - families: [orb]
    devices: [0, 1]
    replicas: 2
"""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return catalogues.load([catalogues.HERE])


def families_by_device(name: str, catalogue: Catalogue) -> dict[str, set[str]]:
    profile = profiles.load(name)
    devices, assumed = devices_for(profile, [])
    assert assumed
    found: dict[str, set[str]] = {device.id: set() for device in devices}
    for each in plan(profile, catalogue, devices, Footprints()):
        assert each.decision.action == "load", each
        found[each.decision.device].add(catalogue.family_of(catalogue.resolve(each.model)).name)
    return found


@pytest.mark.parametrize("name", ["cpu", "gpu1", "gpu8-conservative", "gpu8-efficient", "mig"])
def test_profiles_that_come_along_are_valid(name: str, catalogue: Catalogue) -> None:
    assert name in profiles.names()
    profiles.check(profiles.load(name), catalogue, name)


def test_conservative_keeps_families_apart(catalogue: Catalogue) -> None:
    assert families_by_device("gpu8-conservative", catalogue) == {
        "gpu-0": {"mace", "orb"},
        "gpu-1": {"fairchem", "sevennet"},
        "gpu-2": {"matgl"},
        "gpu-3": {"grace"},
        "gpu-4": {"mattersim"},
        "gpu-5": set(),
        "gpu-6": set(),
        "gpu-7": set(),
    }


def test_efficient_has_two_replicas_of_fairchem_and_sevennet_and_light_families_share(catalogue: Catalogue) -> None:
    found = families_by_device("gpu8-efficient", catalogue)
    for family in ("fairchem", "sevennet"):
        assert sum(family in there for there in found.values()) == 2
    assert max(map(len, found.values())) > 1


def test_a_spare_device_stands_in_for_one_that_is_lost(catalogue: Catalogue) -> None:
    profile = profiles.load("gpu8-conservative")
    devices, _ = devices_for(profile, [])
    devices[2] = replace(devices[2], fault="lost")
    placed = plan(profile, catalogue, devices, Footprints())
    (matgl,) = [each for each in placed if each.model.startswith("tensornet")]
    assert matgl.decision.device == "gpu-5"


def test_a_small_gpu_tells_what_has_no_place(catalogue: Catalogue) -> None:
    text = VALID.replace("memory_gb: 80", "memory_gb: 4")
    profile = profiles.parse(text)
    devices, _ = devices_for(profile, [])
    actions = [each.decision.action for each in plan(profile, catalogue, devices, Footprints())]
    # 4,096 MB less the margin of 2,000 hold one model of 1,500 on each: mace and one of two copies of orb.
    assert actions == ["load", "load", "wait"]


@pytest.mark.parametrize(
    ("broken", "line", "what"),
    [
        (VALID.replace("count: 2", "count: none"), 2, "valid integer"),
        (VALID.replace("[0]", "[7]"), 1, "no device 7"),
        (VALID.replace("    devices: [0]\n", ""), 4, "required"),
        (VALID.replace("[orb]", "[mace]"), 1, "mace is in two groups"),
        (VALID.replace("replicas: 2", "replicas: 3"), 6, "as many devices"),
        (VALID.replace("replicas: 2", "replica: 2"), 8, "Extra inputs"),
        (VALID + "spare: [1]\n", 1, "spare and belongs to a group"),
        (VALID + "description: again\n", 9, "twice"),
        (VALID + "groups: [\n", 10, ""),
        ("- a list\n", 1, "a mapping"),
        ("", 1, "a mapping"),
    ],
)
def test_a_mistake_is_told_with_its_line(broken: str, line: int, what: str) -> None:
    with pytest.raises(SetupError) as raised:
        profiles.parse(broken, "mine.yaml")
    assert f"mine.yaml:{line}:" in raised.value.detail
    assert what in raised.value.detail


def test_families_and_models_have_to_exist(catalogue: Catalogue) -> None:
    with pytest.raises(SetupError, match="no family 'mase'"):
        profiles.check(profiles.parse(VALID.replace("[mace]", "[mase]")), catalogue, "mine")
    with pytest.raises(UnknownModel):
        profiles.check(profiles.parse(VALID + "pinned: [no-such-model]\n"), catalogue, "mine")
    with pytest.raises(SetupError, match="no profile"):
        profiles.load("gpu9")


def test_the_command_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(VALID)
    runner = CliRunner()
    answer = runner.invoke(application(), ["placement", "plan", str(tmp_path / "mine.yaml"), "--json"])
    assert answer.exit_code == 0, answer.output
    placed = json.loads(answer.stdout)["placed"]
    assert [(each["replica"], each["decision"]["action"]) for each in placed] == [(0, "load"), (0, "load"), (1, "load")]
    table = runner.invoke(application(), ["placement", "plan", "gpu8-conservative"])
    assert "stands in for one that is lost" in table.stdout
    assert "gpu8-efficient" in runner.invoke(application(), ["placement", "list"]).stdout


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scheduler": "off", "scheduler_profile": "cpu"}, "needs the scheduler"),
        ({"scheduler": "on", "scheduler_profile": "gpu9"}, "no profile 'gpu9'"),
    ],
)
def test_a_profile_of_the_settings_that_cannot_hold_is_told_before_anything_starts(
    changes: dict[str, str], told: str, tmp_path: Path
) -> None:
    ports = dict(zip(("port", "grpc_port", "metrics_port", "http_port"), free_ports(4), strict=True))
    with pytest.raises(SetupError, match=told):
        check_machine(settings.load(state=tmp_path, **ports, **changes))
