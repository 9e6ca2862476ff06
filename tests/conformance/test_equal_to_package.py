"""What Forcegate answers equals what the package's own ASE calculator answers, computed apart, in that family's environment.

``cases.REFERENCES`` is the table of what each case is compared with. The largest deviations go to ``var/conformance.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcefields import catalogue
from forcegate import evaluate
from tests.conformance import cases
from tests.conformance.comparison import ANALYTIC, Tolerance, beyond, deviations
from tests.conformance.environments import checkpoint_of, run_in
from tests.conformance.reference import family_of
from tests.service import ROOT, RunningService

SERVED = [
    *(("lj-argon", "", case) for case in cases.STRUCTURES),
    *(("sevennet-0", "", case) for case in cases.STRUCTURES),
    *(("chgnet-0.3.0", "", case) for case in cases.STRUCTURES),
    *(("sevennet-mf-0", head, case) for head in ("PBE", "R2SCAN") for case in cases.FEW),
]
IN_PROCESS = ("sevennet-0-22may2024", "sevennet-l3i5", "chgnet-0.2.0", "chgnet-r2scan")

Answers = dict[str, dict[str, Any]]


def read(file: Path) -> Answers:
    """Quantities by ``<case>/<kind>``."""
    answers: Answers = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            case, kind, quantity = name.rsplit("/", 2)
            answers.setdefault(f"{case}/{kind}", {})[quantity] = arrays[name]
    return answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, Any]]]:
    """Collects the deviations and writes them down."""
    rows: dict[str, dict[str, Any]] = {}
    yield rows
    (ROOT / "var").mkdir(exist_ok=True)
    (ROOT / "var" / "conformance.json").write_text(json.dumps(rows, indent=2) + "\n")


@pytest.fixture(scope="module")
def packages(folder: Path) -> Any:
    """The package's answers for the cases of one variant and head, computed once."""

    @lru_cache
    def references(variant: str, head: str) -> Answers:
        file = folder / f"{variant}-{head}.npz"
        names = [case for name, its_head, case in SERVED if (name, its_head) == (variant, head)]
        run_in(family_of(variant), "reference", variant, head, file, *names)
        return read(file)

    return references


@pytest.fixture(scope="module")
def served(service: RunningService) -> Any:
    """The service's answers for the cases of one variant and head: all in flight together, so that they share batches."""

    @lru_cache
    def answers(variant: str, head: str) -> Answers:
        names = [case for name, its_head, case in SERVED if (name, its_head) == (variant, head)]
        structures = [cases.structure(family_of(variant), case) for case in names]
        extra = catalogue.load().resolve(variant).extra_outputs
        outputs = ("energy", "forces", "stress", *extra)
        results = evaluate(structures, variant, head=head or None, address=service.grpc, outputs=outputs)
        return {
            f"{case}/served": {"energy": r.energy, "forces": r.forces, "stress": r.stress, **r.extra}
            for case, r in zip(names, results, strict=True)
        }

    return answers


def expected(family: str, case: str, references: Answers) -> dict[str, Any]:
    """The reference of one case; without stress where the structure is not periodic in all three directions."""
    known = dict(references[f"{case}/{cases.reference(family, case).kind}"])
    assert "error" not in known, f"the package cannot evaluate its reference: {known['error']}"
    if not cases.structure(family, case).pbc.all():
        known["stress"] = None
    return known


def tolerance(family: str, case: str) -> Tolerance:
    """The tolerance of one case."""
    if family == "lennard_jones":
        return ANALYTIC
    forces = cases.reference(family, case).forces
    return replace(Tolerance(), forces=forces) if forces else Tolerance()


def compare(variant: str, head: str, case: str, answer: dict[str, Any], references: Answers, table: dict[str, Any]) -> None:
    family = family_of(variant)
    found = deviations(answer, expected(family, case, references))
    row = cases.reference(family, case)
    name = f"{variant} {head}".strip()
    table.setdefault(name, {})[case] = found | {"reference": row.kind, "reason": row.reason}
    assert beyond(found, tolerance(family, case)) == {}


@pytest.mark.parametrize(("variant", "head", "case"), SERVED)
def test_served_equals_the_package(variant: str, head: str, case: str, served: Any, packages: Any, table: dict[str, Any]) -> None:
    compare(variant, head, case, served(variant, head)[f"{case}/served"], packages(variant, head), table)


@pytest.mark.parametrize("variant", IN_PROCESS)
def test_the_other_variants_equal_the_package(variant: str, folder: Path, table: dict[str, Any]) -> None:
    file = folder / f"{variant}.npz"
    run_in(family_of(variant), "in_process", variant, checkpoint_of(variant), file, *cases.FEW)
    answers = read(file)
    for case in cases.FEW:
        answer = answers[f"{case}/served"]
        if np.isnan(answer["stress"]).all():
            answer["stress"] = None
        compare(variant, "", case, answer, answers, table)


@pytest.mark.parametrize(
    ("variant", "case"),
    [
        (variant, case)
        for variant in ("sevennet-0", "chgnet-0.3.0")
        for case, row in cases.REFERENCES[family_of(variant)].items()
        if row.kind != "package" and not row.hopeless
    ],
)
def test_the_package_is_wrong_where_the_table_says_so(variant: str, case: str, packages: Any) -> None:
    """Otherwise the row, and perhaps the care that the runtime takes, is no longer needed."""
    references = packages(variant, "")
    as_it_is = references[f"{case}/package"]
    if "error" not in as_it_is:
        assert beyond(deviations(as_it_is, references[f"{case}/{cases.reference(family_of(variant), case).kind}"]), Tolerance())


def test_the_heads_of_one_model_differ(served: Any) -> None:
    """Two functionals: if the head were lost on the way, both would agree."""
    one, other = served("sevennet-mf-0", "PBE")["SrTiO3/served"], served("sevennet-mf-0", "R2SCAN")["SrTiO3/served"]
    found = deviations(one, other)
    assert found["energy"] > 0.1
    assert found["forces"] > 0.01


@pytest.mark.parametrize("variant", ["lj-argon", "sevennet-0", "chgnet-0.3.0"])
@pytest.mark.parametrize(
    ("quantity", "spoil"),
    [
        ("energy", lambda energy: energy + 1e-3),
        ("forces", lambda forces: -forces),
        ("forces", lambda forces: forces[::-1]),
        ("forces", lambda forces: forces * 1.01),
        ("stress", lambda stress: -stress),
        ("stress", lambda stress: stress[[0, 1, 2, 5, 4, 3]]),
        ("stress", lambda stress: stress * 160.21766),
        ("stress", lambda _stress: None),
    ],
    ids=["shifted energy", "force sign", "atom order", "1 % of force", "stress sign", "Voigt order", "GPa", "no stress"],
)
def test_negative_control(variant: str, quantity: str, spoil: Any, served: Any, packages: Any) -> None:
    """The comparison that passes above fails on an answer that is wrong in one of the ways that happen."""
    family = family_of(variant)
    answer = served(variant, "")["SrTiO3/served"]
    known = expected(family, "SrTiO3", packages(variant, ""))
    assert beyond(deviations(answer, known), tolerance(family, "SrTiO3")) == {}
    spoilt = dict(answer) | {quantity: spoil(answer[quantity])}
    assert quantity in beyond(deviations(spoilt, known), tolerance(family, "SrTiO3"))


@pytest.mark.parametrize("variant", ["lj-argon", "sevennet-0", "chgnet-0.3.0"])
def test_negative_control_displaced_structure(variant: str, service: RunningService, packages: Any) -> None:
    """One atom moved by 0.001 A is another structure, and the comparison sees it."""
    atoms = cases.structure(family_of(variant), "SrTiO3")
    atoms.positions[1, 0] += 1e-3
    (moved,) = evaluate([atoms], variant, address=service.grpc)
    found = deviations({"forces": moved.forces}, {"forces": packages(variant, "")["SrTiO3/package"]["forces"]})
    assert beyond(found, tolerance(family_of(variant), "SrTiO3"))
