"""Calculations: what is told of a model's answer, with and without a dispersion correction."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters.repository import parameters
from forcefields import catalogue
from forcegate import contract
from forcegate.structure import Structure
from frontend import calculations
from frontend.requests import Options, SinglePoint
from frontend.service import Service
from frontend.settings import Settings
from frontend.telemetry import Call, Metrics
from frontend.triton.client import Evaluator
from frontend.triton.directory import READY, Entry
from frontend.triton.facts import Facts
from tests.unit.fault_injection import FaultyTriton, serving

CATALOGUE = catalogue.load()
VARIANT = CATALOGUE.variants["chgnet-0.3.0"]


class Known:
    """Stands for the directory: every model is there, with energies for each atom and a functional that takes D3."""

    on_demand = False

    def facts(self, name: str) -> Facts:
        values = parameters(VARIANT, CATALOGUE.family_of(VARIANT))
        facts = Facts.from_config(name, {"parameters": {key: {"string_value": value} for key, value in values.items()}})
        return replace(facts, extra_outputs=("energies", "magmoms"), functional="PBE", dispersion="allowed")

    def entry(self, name: str) -> Entry:
        return Entry(VARIANT, CATALOGUE.family_of(VARIANT), READY, facts=self.facts(name))

    def last_process(self, _name: str) -> int | None:
        return None


def answered(dispersion: str, state: Path) -> tuple[dict[str, Any], FaultyTriton]:
    triton = FaultyTriton()
    structure = Structure(np.full(2, 18, np.int32), np.array([[0.0, 0, 0], [0, 0, 3.8]]))
    task = SinglePoint("m", Options(dispersion=dispersion), structure)

    async def run(address: str) -> dict[str, Any]:
        directory: Any = Known()
        evaluator = Evaluator(address, directory, Metrics())
        service = Service(Settings(state=state))
        service.directory, service.evaluator = directory, evaluator
        call = Call("test", time.perf_counter())
        call.allow(20)
        try:
            return await calculations.single_point(service, task, call)
        finally:
            await evaluator.close()

    with serving(triton) as address:
        return asyncio.run(run(address)), triton


@pytest.mark.parametrize(("dispersion", "energy", "extra"), [("none", 2.0, {"energies", "magmoms"}), ("d3bj", 4.0, {"magmoms"})])
def test_energies_of_atoms_are_left_out_where_a_correction_is_added(
    dispersion: str, energy: float, extra: set[str], tmp_path: Path
) -> None:
    answer, triton = answered(dispersion, tmp_path)
    assert answer["energy"] == energy, "the fault injector counts atoms, for the correction too"
    assert answer.keys() & {"energies", "magmoms"} == extra
    asked = {output.name for request in triton.requests for output in request.outputs}
    assert asked & {"energies", "magmoms"} == extra


def test_every_quantity_of_the_contract_has_its_unit() -> None:
    units = calculations.UNITS.value
    for spec in contract.output_specs(tuple(contract.EXTRA_OUTPUTS)):
        assert units[spec.name].startswith(spec.unit), spec.name
    assert units.keys() == {spec.name for spec in contract.output_specs(tuple(contract.EXTRA_OUTPUTS))}
