"""The compose files, rendered by docker compose itself and held against profiles, settings and images."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from docker import compose, production
from forcefields import catalogue as catalogues
from forcegate.errors import SetupError
from frontend.deployment.commands import PARTS, PROFILES
from frontend.scheduler import profile as profiles
from frontend.scheduler.inventory import NvmlReader
from frontend.settings import PREFIX, Settings, load
from frontend.supervisor import residents
from frontend.supervisor.watch import ModelWatch
from tests.deploy.tools import run
from tests.service import ROOT
from tests.unit.scheduler.nvml import Library, gpu


@cache
def rendered(profile: str, *parts: str, **variables: str) -> dict[str, Any]:
    """What docker compose makes of the files, with every optional service."""
    names = ["", f".{profile}", *(f".{part}" for part in parts)]
    files = [word for name in names for word in ("--file", f"docker/compose{name}.yaml")]
    done = run("docker-compose", *files, "--profile", "*", "config", "--format", "json", **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_file_fits_the_schema_of_compose() -> None:
    done = run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *(str(path) for path in compose.files()))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("parts", [(), PARTS], ids=["alone", "with everything"])
def test_every_container_is_locked_down(profile: str, parts: tuple[str, ...]) -> None:
    for name, service in rendered(profile, *parts)["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["tmpfs"], name
        assert service["logging"] == {"driver": "json-file", "options": {"max-size": "100m", "max-file": "3"}}, name
        limits = service["deploy"]["resources"]["limits"]
        assert float(limits["cpus"]) > 0, name
        assert int(limits["memory"]) > 0, name
        if name == "export":
            assert service["restart"] == "no"
            continue
        assert service["restart"] == "unless-stopped", name
        check = service["healthcheck"]
        assert (check["interval"], check["timeout"], check["retries"]) == ("30s", "10s", 3), name
        assert check["start_period"] == ("2m0s" if name == "triton" else "30s"), name
        assert service.get("user") or name == "dcgm-exporter", name


@pytest.mark.parametrize("profile", PROFILES)
def test_beyond_loopback_only_the_gateway_is_published(profile: str) -> None:
    for name, service in rendered(profile, *PARTS)["services"].items():
        for port in service.get("ports", ()):
            assert name == "gateway" or port["host_ip"] == "127.0.0.1", name
    (port,) = rendered(profile)["services"]["gateway"]["ports"]
    assert (int(port["published"]), port["target"]) == (8000, Settings.model_fields["port"].default)


@pytest.mark.parametrize("profile", PROFILES)
def test_models_are_written_by_the_export_job_alone(profile: str) -> None:
    for name, service in rendered(profile)["services"].items():
        mounts = {mount["source"]: mount for mount in service["volumes"]}
        assert mounts["models"]["target"] == "/opt/forcegate/model_repository"
        for volume in ("models", "own-models"):
            assert mounts[volume].get("read_only", False) == (name != "export"), (name, volume)


@pytest.mark.parametrize("profile", compose.PROFILES)
def test_devices_are_those_of_the_placement_profile(profile: str) -> None:
    placement = profiles.load(compose.PROFILES[profile])
    triton = rendered(profile)["services"]["triton"]
    asked = triton["deploy"]["resources"].get("reservations", {}).get("devices", [])
    ids = [identifier for device in asked for identifier in device["device_ids"]]
    assert ids == [str(n) for n in range(placement.devices.count)] * (placement.devices.kind == "gpu")
    assert triton["environment"]["FORCEGATE_DEVICE"] == ("cuda" if ids else "cpu")
    used = {device for group in placement.groups for device in group.devices}
    assert {str(device) for device in used} <= set(ids)


def test_families_are_on_the_devices_of_their_profile_as_soon_as_the_container_has_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the settings of the container, on as many GPUs as it is given; what loads a model is told where, and loads nothing."""
    services = rendered("gpu8")["services"]
    parts = [services[part]["environment"] for part in ("triton", "gateway", "worker")]
    assert [part["FORCEGATE_SCHEDULER"] for part in parts] == ["on"] * 3
    for name, value in parts[0].items():
        monkeypatch.setenv(name, value)
    placement, catalogue = profiles.load(compose.PROFILES["gpu8"]), catalogues.load()
    given = len(services["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"])

    async def placed(gpus: int) -> dict[str, set[int]]:
        monkeypatch.setattr(residents, "readers", lambda: NvmlReader(Library([gpu(number) for number in range(gpus)])))
        settings = load(state=tmp_path)

        async def bring(name: str, **_: Any) -> None:
            assert name in made.groups

        watch = ModelWatch(None, lambda: None, bring, list, lambda: None)  # type: ignore[arg-type]
        made = residents.Residents(settings, catalogue, None, watch, bring)  # type: ignore[arg-type]
        await made.start()
        await asyncio.gather(*(made.prewarm(model, "") for model in settings.models))
        assert made.state()["config"]["profile"] == "gpu8-efficient"
        return {name: {index for each in group for index in each["gpus"]} for name, group in made.groups.items()}

    found = asyncio.run(placed(given))
    home = {family: set(group.devices) for group in placement.groups for family in group.families}
    assert {catalogue.resolve(model).family for model in found} == set(home)
    for model, devices in found.items():
        assert devices, model
        assert devices <= home[catalogue.resolve(model).family], model
    with pytest.raises(SetupError, match="gpu8-efficient is made for 8 x gpu"):
        asyncio.run(placed(given - 1))


@pytest.mark.parametrize("profile", ["cpu", "gpu1"])
def test_one_device_needs_no_placement(profile: str) -> None:
    assert not profiles.load(compose.PROFILES[profile]).groups
    assert not any("SCHEDULER" in name for name in rendered(profile)["services"]["triton"]["environment"])


@pytest.mark.parametrize("profile", PROFILES)
def test_models_and_families_fit_together(profile: str) -> None:
    catalogue = catalogues.load()
    services = rendered(profile)["services"]
    models = services["triton"]["environment"]["FORCEGATE_MODELS"].split(",")
    families = services["triton"]["build"]["args"]["FAMILIES"].split()
    assert {catalogue.family_of(catalogue.resolve(model)).name for model in models} <= set(families)
    assert services["export"]["command"] == ["export", *models]
    assert services["gateway"]["environment"]["FORCEGATE_MODELS"] == ",".join(models)


def test_gateway_and_worker_find_triton_and_each_other() -> None:
    services = rendered("cpu", *PARTS)["services"]
    for name in ("gateway", "worker"):
        there = services[name]["environment"]
        assert there["FORCEGATE_TRITON_HOST"] == "triton"
        assert there["FORCEGATE_GRPC_PORT"] == services["triton"]["environment"]["FORCEGATE_GRPC_PORT"]
        assert there["FORCEGATE_DATABASE_URL_FILE"] == "/run/secrets/database_url"
        assert set(services[name]["networks"]) & set(services["triton"]["networks"])
    assert rendered("cpu")["networks"]["inside"]["internal"]


def test_a_variable_of_env_production_changes_models_port_and_limits() -> None:
    changed = rendered("cpu", FORCEGATE_MODELS="lj-argon", FORCEGATE_PUBLISH="127.0.0.1:9000", TRITON_MEMORY="5g")["services"]
    assert changed["triton"]["environment"]["FORCEGATE_MODELS"] == "lj-argon"
    assert changed["gateway"]["ports"][0]["host_ip"] == "127.0.0.1"
    assert int(changed["triton"]["deploy"]["resources"]["limits"]["memory"]) == 5 * 2**30


def test_the_example_has_every_setting_and_can_be_read_back(tmp_path: Any) -> None:
    text = production.example()
    for name in Settings.model_fields:
        assert f"{PREFIX}{name.upper()}" in text, name
    named = {line[1:].partition("=")[0] for line in text.splitlines() if line.startswith("#") and "=" in line.partition(" ")[0]}
    files = "".join(path.read_text() for path in compose.files())
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    assert [name for name in named - settings if f"${{{name}" not in files and f"{name}: null" not in files] == []
    (tmp_path / "env").write_text(text)
    done = run("docker-compose", "--env-file", str(tmp_path / "env"), "--file", "docker/compose.yaml", "config", "--quiet")
    assert done.returncode == 0, done.stderr


def test_secrets_and_the_filled_in_example_stay_out_of_git() -> None:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/.env.production", "/docker/secrets/"} <= set(lines)
