"""Tasks through the clients and ``forcegate tasks``, against a real service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from forcegate import AsyncClient, Client, errors
from tests.integration.test_cli import forcegate
from tests.service import RunningService

ENDLESS = {"equilibration_steps": 0, "production_steps": 1_000_000, "sample_interval": 1000}
"""Dynamics that no test waits for."""


def argon(seed: int = 1) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_a_task_from_its_submission_to_its_result(service: RunningService, encoding: str) -> None:
    looks: list[dict[str, Any]] = []
    with Client(service.url, encoding=encoding) as client:
        accepted = client.submit("optimization", argon(), "lj-argon", options={"priority": "HIGH"}, fmax=0.01)
        task = accepted["task_id"]
        assert accepted["status_url"].endswith(task)
        result = client.wait(task, 120, looks.append)
        assert result["converged"]
        assert (looks[-1]["status"], looks[-1]["priority"], looks[-1]["kind"]) == ("COMPLETED", "HIGH", "optimization")
        assert client.result(task)["final_energy"] == result["final_energy"]
        assert task in [view["task_id"] for view in client.tasks(kind="optimization", status="COMPLETED", limit=50)]
        events = list(client.events(task))
        assert [event["number"] for event in events] == list(range(1, len(events) + 1))
        assert events[-1]["status"] == "COMPLETED"
        batch = client.submit("batch", [argon(1), argon(2)], "lj-argon", task="qmof_energy")
        assert client.wait(batch["task_id"], 120)["succeeded"] == 2
        several = client.submit("multi-model", argon(), ["lj-argon"], task="single_point")
        assert client.wait(several["task_id"], 120)["models_count"] == 1


@pytest.mark.parametrize(
    ("model", "options", "further"),
    [
        ("chgnet-0.3.0", {}, {"magmoms"}),
        ("sevennet-mf-0", {"head": "R2SCAN"}, set()),
        ("sevennet-0", {"dispersion": "d3bj"}, set()),
    ],
)
def test_a_queued_single_point_is_the_answer_of_the_direct_one(
    service: RunningService, model: str, options: dict[str, Any], further: set[str]
) -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    with Client(service.url) as client:
        direct = client.single_point(atoms, model, **options)
        queued = client.wait(client.submit("single-point", atoms, model, **options)["task_id"], 120)
    assert further == {"magmoms", "energies", "charges"} & set(queued) == {"magmoms", "energies", "charges"} & set(direct)
    for name in ("checkpoint_sha256", "head", "functional", "dispersion"):
        assert queued["provenance"][name] == direct["provenance"][name], name
    for name in {"energy", "forces", "stress", "max_force"} | further:
        assert np.allclose(queued[name], direct[name], atol=1e-4), name  # float32 models, in other batches


def test_cancelling_retrying_and_waiting_too_short(service: RunningService) -> None:
    with Client(service.url) as client:
        task = client.submit("stability", argon(), "lj-argon", **ENDLESS)["task_id"]
        try:
            with pytest.raises(errors.DeadlineExceeded, match="still"):
                client.wait(task, 0.0)
            with pytest.raises(errors.TaskNotFinished):
                client.result(task)
            with pytest.raises(errors.Conflict):
                client.retry(task)
            client.cancel(task)
            with pytest.raises(errors.TaskNotFinished, match="cancelled"):
                client.wait(task, 60)
            assert client.retry(task)["status"] == "QUEUED"
        finally:
            client.cancel(task)
        for call in (client.task, client.result, client.cancel, client.retry, lambda name: list(client.events(name))):
            with pytest.raises(errors.NotFound):
                call("nobody")
        with pytest.raises(errors.InvalidRequest):
            client.submit("optimization", argon(), "lj-argon", fmax=-1)
        crystal = bulk("Ar", "fcc", a=6.2)
        with pytest.raises(errors.FitFailed) as caught:
            client.wait(client.submit("bulk-modulus", crystal, "lj-argon")["task_id"], 120)
        assert len(caught.value.points["volumes"]) == 7, "the points of a fit that failed come with the error"


def test_the_same_with_asyncio(service: RunningService) -> None:
    async def use() -> None:
        async with AsyncClient(service.url) as client:
            submitted = [await client.submit("optimization", argon(seed), "lj-argon", fmax=0.02) for seed in (1, 2, 3)]
            results = await asyncio.gather(*(client.wait(each["task_id"], 120) for each in submitted))
            assert all(result["converged"] for result in results)
            events = [event async for event in client.events(submitted[0]["task_id"])]
            assert events[-1]["status"] == "COMPLETED"
            endless = (await client.submit("stability", argon(), "lj-argon", **ENDLESS))["task_id"]
            await client.cancel(endless)
            with pytest.raises(errors.TaskNotFinished):
                await client.wait(endless, 60)

    asyncio.run(use())


def test_the_commands(service: RunningService, tmp_path: Path) -> None:
    file = tmp_path / "argon.extxyz"
    write(file, argon())
    submitted = forcegate(
        service, "tasks", "submit", "optimization", file, "-m", "lj-argon", "-p", "fmax=0.01", "-p", "optimizer=FIRE"
    )
    assert submitted.returncode == 0, submitted.stderr
    task = submitted.stdout.strip()
    followed = forcegate(service, "tasks", "follow", task)
    assert followed.returncode == 0, followed.stderr
    assert json.loads(forcegate(service, "tasks", "show", task).stdout)["status"] == "COMPLETED"
    assert json.loads(forcegate(service, "tasks", "result", task).stdout)["converged"]
    assert task in forcegate(service, "tasks", "list").stdout
    endless = forcegate(
        service,
        "tasks",
        "submit",
        "stability",
        file,
        "-m",
        "lj-argon",
        "-p",
        "production_steps=1000000",
        "-p",
        "sample_interval=1000",
    ).stdout.strip()
    forcegate(service, "tasks", "cancel", endless)
    stopped = forcegate(service, "tasks", "follow", endless)
    assert (stopped.returncode, "CANCELLED" in stopped.stderr) == (1, True), stopped.stderr
    assert forcegate(service, "tasks", "retry", endless).stdout.strip() == "QUEUED"
    forcegate(service, "tasks", "cancel", endless)
    wrong = forcegate(service, "tasks", "submit", "optimization", file, "-m", "lj-argon", "-p", "fmax")
    assert wrong.returncode != 0
    assert "NAME=VALUE" in wrong.stderr
