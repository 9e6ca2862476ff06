"""What is checked in below model_repository/ is what the catalogue and the contract say, and Triton can read it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from exporters import repository
from forcefields import catalogue
from forcefields.catalogue import HERE, Variant, parse_elements
from forcegate import contract

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
OWN = catalogue.load([HERE])
VARIANTS = repository.own_variants(OWN)


def tracked() -> set[str]:
    """The files below model_repository/ that git knows; all that are there and no checkpoint, where there is no git."""
    listed = subprocess.run(["git", "ls-files", "model_repository"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return {line.removeprefix("model_repository/") for line in listed.stdout.splitlines()}
    return {str(path.relative_to(REPOSITORY)) for name in ("config.pbtxt", "model.py") for path in REPOSITORY.rglob(name)}


def config(variant: Variant) -> ModelConfig:
    """The configuration as Triton parses it, unknown fields refused."""
    return text_format.Parse((REPOSITORY / variant.name / "config.pbtxt").read_text(), ModelConfig())


def test_checked_in_files_are_what_would_be_generated() -> None:
    generated = {str(path): text for path, text in repository.files(VARIANTS, OWN)}
    different = [
        path for path, text in generated.items() if not (REPOSITORY / path).is_file() or (REPOSITORY / path).read_text() != text
    ]
    assert different == [], "run `python -m exporters.repository` and commit what it writes"


def test_nothing_else_is_checked_in() -> None:
    """Neither a variant that is gone nor a checkpoint."""
    assert tracked() == {str(path) for path, _ in repository.files(VARIANTS, OWN)}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_tritons_view_of_a_variant(variant: Variant) -> None:
    found = config(variant)
    assert (found.name, found.backend) == (variant.name, "python")
    assert found.max_batch_size == contract.MAX_BATCH_SIZE
    assert found.HasField("dynamic_batching")
    assert not found.dynamic_batching.ListFields(), "any queue policy stalls the batcher of Triton 2.51"
    inputs = [(t.name, t.data_type, list(t.dims), t.optional, t.allow_ragged_batch) for t in found.input]
    types = {"INT32": 8, "FP64": 12, "BOOL": 1}
    assert inputs == [(s.name, types[s.triton_type], list(s.dims), s.optional, True) for s in contract.INPUTS]
    outputs = [(t.name, t.data_type, list(t.dims)) for t in found.output]
    assert outputs == [(s.name, types[s.triton_type], list(s.dims)) for s in contract.output_specs(variant.extra_outputs)]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_provenance_that_any_client_can_read(variant: Variant) -> None:
    read = {key: value.string_value for key, value in config(variant).parameters.items()}
    family = OWN.family_of(variant)
    assert read["checkpoint_sha256"] == variant.checkpoint.sha256
    assert (read["family"], read["package"], read["package_version"]) == (family.name, family.package, family.version)
    assert read["contract_version"] == str(contract.VERSION)
    assert parse_elements(read["elements"]) == variant.elements
    assert float(read["cutoff"]) == variant.cutoff
    assert tuple(filter(None, read["heads"].split(","))) == variant.heads
    assert json.loads(read["head_functionals"]) == dict(variant.head_functionals)
    assert read["EXECUTION_ENV_PATH"] == f"$$TRITON_MODEL_DIRECTORY/../../environments/{family.environment}"


def test_models_are_one_import() -> None:
    for variant in VARIANTS:
        source = (REPOSITORY / variant.name / "1" / "model.py").read_text()
        compile(source, "model.py", "exec")
        assert source.count("import") == 2, "the word in its first line, and the import"


def test_writing_changes_nothing_the_second_time(tmp_path: Path) -> None:
    assert len(repository.write(OWN, tmp_path)) == 2 * len(VARIANTS)
    assert repository.write(OWN, tmp_path) == []
    path = tmp_path / VARIANTS[0].name / "config.pbtxt"
    path.write_text("edited by hand")
    assert repository.write(OWN, tmp_path) == [path]


def test_text_that_needs_quoting() -> None:
    """A summary or a licence may hold quotes, backslashes and umlauts."""
    odd = replace(VARIANTS[0], licence='the "ÄSL" \\ licence\n', training_data="a\tb")
    text = repository.config_pbtxt(odd, OWN.family_of(VARIANTS[0]))
    parameters = text_format.Parse(text, ModelConfig()).parameters
    assert parameters["training_data"].string_value == "a\tb"
    assert parameters["licence"].string_value == 'the "ÄSL" \\ licence\n'
