"""The shapes of requests and answers, for /docs and openapi.json alone.

Bodies never pass through these classes: checking a hundred thousand coordinates one by one would take longer than the evaluation.
``frontend.requests`` reads what is described here, and tests hold the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from forcegate.dispersion import CHOICES
from forcegate.errors import BY_CODE
from forcegate.structure import MAX_ATOMIC_NUMBER, TEXT_FORMATS
from frontend.requests import MAX_MODELS
from frontend.tasks.kinds import CALCULATIONS

Symbol = Annotated[str, WithJsonSchema({"type": "string", "enum": chemical_symbols[1 : MAX_ATOMIC_NUMBER + 1]})]
Number = Annotated[int, Field(ge=1, le=MAX_ATOMIC_NUMBER)]
Vector = Annotated[list[float], Field(min_length=3, max_length=3)]
Voigt = Annotated[list[float], Field(min_length=6, max_length=6)]
_PERIODIC = {"enum": [True, False, 0, 1]}
_HARTREE_FREE = "total energy of the functional in `provenance`; its zero is the model's own"


def words(allowed: list[str]) -> Any:
    """The schema of a string that is one of these."""
    return WithJsonSchema({"type": "string", "enum": allowed})


def _either(*schemas: dict[str, Any]) -> Any:
    return WithJsonSchema({"anyOf": list(schemas)})


_NULL: dict[str, Any] = {"type": "null"}
_THREE: dict[str, Any] = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}


class Error(BaseModel):
    """Every answer that is not the one asked for."""

    detail: str = Field(description="What is wrong.")
    code: Annotated[str, words(sorted(BY_CODE))] = Field(description="The kind of error, for programs.")
    retryable: bool = Field(description="Whether the same request can succeed later.")
    hint: str = Field(description="What to do next.")
    points: dict[str, list[float]] = Field({}, description="Of `fit_failed`: what was to be fitted, by name.")
    task_id: str = Field("", description="Of `task_continues`: the task that goes on.")
    status_url: str = Field("", description="Of `task_continues`: where the task is; the header `Location` as well.")


class Atoms(BaseModel):
    """Atoms as lists. `symbols` or `numbers`, one entry for each row of `positions`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["symbols"]}, {"required": ["numbers"]}]})

    symbols: list[Symbol] | None = Field(None, description="Element symbols.")
    numbers: list[Number] | None = Field(None, description="Atomic numbers; not needed beside `symbols`.")
    positions: list[Vector] = Field(description="Cartesian positions in A, one row for each atom.")
    cell: Annotated[Any, _either({"type": "array", "items": _THREE, "minItems": 3, "maxItems": 3}, _THREE, _NULL)] = Field(
        None, description="Lattice vectors as rows, or the three edges of a box, in A."
    )
    pbc: Annotated[
        Any, _either({"type": "boolean"}, {"type": "array", "items": _PERIODIC, "minItems": 3, "maxItems": 3}, _NULL)
    ] = Field(None, description="Periodic along each lattice vector; true where there is a cell when left out.")
    charge: float | None = Field(None, description="Total charge in e, for models that were trained on it.")
    spin: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Multiplicity 2S+1; 0 or nothing for the lowest that the electrons allow."
    )
    info: dict[str, Any] | None = Field(None, description="`charge` and `spin` are taken from here where they are not given above.")


class AtomsFile(BaseModel):
    """The text of a structure file; the last structure where there are several."""

    format: Annotated[str, words([*TEXT_FORMATS, "optimade"])] = Field(description="The file's format.")
    text: str = Field(description="The file's contents.", min_length=1)


class AtomsStored(BaseModel):
    """A structure that was uploaded. In bodies of one structure `structure_id` may also stand in place of `atoms`."""

    structure_id: str = Field(description="The id that POST /api/v1/structures gave.", min_length=1)


AnyUpload = Annotated[Atoms | AtomsFile, Field(description="A structure, as lists or as the text of a file.")]
AnyAtoms = Annotated[
    Atoms | AtomsFile | AtomsStored, Field(description="A structure, as lists, as the text of a file, or one that was uploaded.")
]


def _one_of_two(schema: dict[str, Any]) -> None:
    schema["required"] = [name for name in schema.get("required", []) if name != "atoms"]
    schema["anyOf"] = [{"required": ["atoms"]}, {"required": ["structure_id"]}]


class OneStructure(BaseModel):
    """A body of one structure: `atoms`, or `structure_id` in place of it."""

    model_config = ConfigDict(json_schema_extra=_one_of_two)

    atoms: AnyAtoms
    structure_id: str | None = Field(None, description="Id of an uploaded structure, in place of `atoms`.")


class Options(BaseModel):
    """What may be asked of every calculation."""

    compute_forces: bool = Field(True, description="Whether forces are wanted.")
    compute_stress: bool = Field(True, description="Whether the stress is wanted.")
    head: str | None = Field(None, description="Head, modal or task of a model that has several; its default when left out.")
    dispersion: Annotated[Any, WithJsonSchema({"enum": [*CHOICES, None]})] = Field(
        "auto",
        description="`d3bj` adds D3(BJ) with the damping of the model's functional, and is refused where that would be wrong; "
        "`auto` adds it where the model's policy recommends it; `none` never.",
    )
    use_d3: bool = Field(False, description='The same as `"dispersion": "d3bj"`.')


Task = Annotated[str, words([name.replace("-", "_") for name in CALCULATIONS])]


class SinglePointRequest(Options, OneStructure):
    """One structure for one model."""

    model_name: str = Field(description="Name or alias of a model of GET /api/v1/models.")


class BatchRequest(Options):
    """Many structures for one model."""

    model_name: str = Field(description="Name or alias of a model of GET /api/v1/models.")
    atoms: list[AnyAtoms] = Field(description="The structures.", min_length=1)
    task: Task = Field("single_point", description="The calculation; anything but `single_point` goes through the queue.")
    task_params: dict[str, Any] | None = Field(None, description="Its parameters, as in a request for one structure.")


class MultiModelParameters(Options):
    """What is asked of every model."""

    heads: dict[str, str] | None = Field(None, description="Head by model name, before `head`.")
    align: bool = Field(True, description="Whether isolated atoms are evaluated, so that energies can be compared.")


class MultiModelRequest(OneStructure):
    """One structure for several models."""

    model_names: list[str] = Field(description="Names or aliases, each model once.", min_length=1, max_length=MAX_MODELS)
    task: Task = Field(
        "single_point", description="The calculation to compare; anything but `single_point` goes through the queue."
    )
    task_params: MultiModelParameters | None = Field(None, description="Options of the task, as in a request for one model.")


class Provenance(BaseModel):
    """Where an answer comes from."""

    model: str = Field(description="Canonical name of the model.")
    checkpoint_sha256: str = Field(description="Hash of the weights' bytes, verified when they were loaded.")
    functional: str = Field(description="Functional that the model, or its head, was trained on.")
    head: str | None = Field(description="Head that answered; null for a model with a single one.")
    dtype: str = Field(description="Floating-point type of the evaluation.")
    arithmetic: dict[str, str | bool] | None = Field(
        description="What it was computed with: `summary` in words, `matmul_precision` of float32 (`highest` is full float32 in "
        "every step, as always on a CPU), `cuequivariance`, `compile`. Null where the gateway cannot read the models' reports."
    )
    package: str = Field(description="Package that the model runs in.")
    package_version: str = Field(description="Its version.")
    dispersion: str = Field(
        description="`none`: no correction was added; `included`: the model itself was made with dispersion; otherwise the name of "
        "the served correction that was added, such as `d3bj-pbe`."
    )
    licence: str = Field(description="Licence of the weights.")
    training_data: str = Field(description="What the model was trained on.")


class Result(BaseModel):
    """What a model says of one structure."""

    energy: float = Field(description=f"eV, {_HARTREE_FREE}.")
    energy_per_atom: float = Field(description="eV, `energy` over the number of atoms.")
    forces: list[Vector] | None = Field(description="eV/A, one row for each atom; null when not asked for.")
    stress: Voigt | None = Field(
        description="eV/A^3, Voigt xx yy zz yz xz xy, +(1/V) dE/de; null when not asked for or not periodic in all three."
    )
    max_force: float | None = Field(description="eV/A, the largest norm of a force.")
    magmoms: list[float] = Field([], description="mu_B, for each atom; of models that have it.")
    charges: list[float] = Field([], description="e, for each atom; of models that have it.")
    energies: list[float] = Field(
        [], description="eV, for each atom; of models that have it, and only where no correction is added: they sum to `energy`."
    )


class Answer(BaseModel):
    """What every calculation answers besides its results."""

    units: dict[str, str] = Field(description="Unit of every quantity.")
    request_id: str = Field(description="Finds this request in the logs.")
    seconds: float = Field(description="Time that the service took, s.")


class SinglePointAnswer(Result, Answer):
    """The answer for one structure."""

    provenance: Provenance


class BatchResult(Result):
    """One structure of a batch that was evaluated."""

    index: int = Field(description="Place of the structure in the request, from 0.")


class BatchFailure(BaseModel):
    """One structure of a batch that was not."""

    index: int = Field(description="Place of the structure in the request, from 0.")
    error: Error


class BatchAnswer(Answer):
    """The answers for many structures."""

    count: int = Field(description="Structures in the request.")
    succeeded: int = Field(description="Structures that were evaluated.")
    failed: int = Field(description="Structures that have an error in their place.")
    results: list[BatchResult | BatchFailure] = Field(description="In the order of the request.")
    provenance: Provenance


class ModelResult(Result):
    """What one of several models says."""

    provenance: Provenance


class ModelOutcome(BaseModel):
    """One model of a comparison."""

    model: str = Field(description="The name in the request.")
    status: Annotated[str, words(["success", "error"])]
    result: ModelResult | None = None
    error: Error | None = None


class EnergyPair(BaseModel):
    """Two models' energies."""

    models: list[str]
    difference_per_atom: float = Field(description="eV, second less first, of the atomization energy per atom.")


class EnergyComparison(BaseModel):
    """Energies on a common zero."""

    unit: str
    note: str = Field(description="What the comparison is worth.")
    reference: str = Field(description="The common zero.")
    functional: dict[str, str] = Field(description="By model.")
    isolated_atom_energy: dict[str, dict[str, float]] = Field(description="eV, by model and element.")
    atomization_energy_per_atom: dict[str, float | None] = Field(description="eV by model; null where an isolated atom failed.")
    pairs: list[EnergyPair]


class ForcePair(BaseModel):
    """Two models' forces."""

    models: list[str]
    rmse: float = Field(description="eV/A, over all components.")
    max: float = Field(description="eV/A, largest norm of a difference.")
    max_atom: int = Field(description="The atom where it is, from 0.")
    cosine: float | None = Field(description="Cosine of the 3N-dimensional angle; null where forces vanish.")


class ForceComparison(BaseModel):
    """Forces, as they are."""

    unit: str
    pairs: list[ForcePair]
    spread_per_atom: list[float] = Field(description="eV/A, root mean square distance of the models' forces from their mean.")
    spread_mean: float
    spread_max: float
    spread_max_atom: int


class StressPair(BaseModel):
    """Two models' stress."""

    models: list[str]
    rmse: float = Field(description="eV/A^3, over the six components.")
    max: float = Field(description="eV/A^3, largest difference of a component.")
    rmse_gpa: float
    max_gpa: float
    pressure_difference_gpa: float = Field(description="GPa, second less first.")


class StressComparison(BaseModel):
    """Stress, as it is."""

    unit: str
    pairs: list[StressPair]


class Comparison(BaseModel):
    """How far the models agree."""

    models: list[str] = Field(description="Those that answered.")
    energy: EnergyComparison
    forces: ForceComparison | None = Field(description="Null with fewer than two models' forces.")
    stress: StressComparison | None = Field(description="Null with fewer than two models' stress.")
    elements_outside: dict[str, list[str]] = Field(description="Elements of the structure that a model was not trained on.")


class MultiModelAnswer(Answer):
    """The models side by side."""

    task: str
    models_count: int
    results: list[ModelOutcome]
    comparison: Comparison


class Worker(BaseModel):
    """One family's execution environment."""

    status: Annotated[str, words(["healthy", "unavailable"])]
    service: str
    models: list[str] = Field(description="Those that are ready.")
    device: str | None
    gpu_available: bool
    gpu_name: str | None
    memory_usage_mb: int | None


class Inference(BaseModel):
    """The inference server."""

    reachable: bool
    seconds_since_seen: float | None


class Health(BaseModel):
    """The service's health, as of the last second."""

    status: Annotated[str, words(["healthy", "degraded", "unavailable"])]
    gateway: Literal["healthy"]
    version: str
    inference_server: Inference
    workers: dict[str, Worker]
    available_workers: int
    total_workers: int


class Family(Worker):
    """One family."""

    title: str
    package: str
    package_version: str
    licence: str
    reference: str
    known_models: list[str]


class Services(BaseModel):
    """All families."""

    total: int
    services: dict[str, Family]


class Alive(BaseModel):
    """The process is up."""

    status: Literal["alive"]


class Ready(BaseModel):
    """At least one model answers."""

    status: Literal["ready"]
    models: list[str]


class Welcome(BaseModel):
    """Where to go from here."""

    name: str
    version: str
    docs: str
    health: str
    models: dict[str, str] = Field(description="State by model.")
    example: str = Field(description="A curl line to try.")
