"""What a kind of task is: its parameters as a request has them, and the calculation that they are given to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ase import Atoms
from pydantic import BaseModel, ConfigDict, Field

from forcegate.calculations.answers import Answer
from forcegate.calculations.parameters import Parameters
from forcegate.errors import EvaluationFailed, InvalidRequest
from forcegate.structure import from_mapping

if TYPE_CHECKING:
    from frontend.tasks.context import Context
    from frontend.tasks.kinds.job import Job

log = logging.getLogger(__name__)

BROKEN = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
"""What a package raises on a structure that it was not written for."""

_Parameters = TypeVar("_Parameters", bound=Parameters)


class TaskParameters(BaseModel):
    """What every kind may be asked for besides its own parameters. Fields that are not known are ignored, as in all bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    head: str | None = Field(None, max_length=200, description="Head, modal or task of a model that has several; its default else.")
    dispersion: Literal["auto", "none", "d3bj"] | None = Field(
        "auto",
        description="`d3bj` adds D3(BJ) to every energy, force and stress of the calculation, relaxations included, and is refused "
        "where that would be wrong; `auto` adds it where the model's policy recommends it; `none` never.",
    )
    use_d3: bool = Field(False, description='The same as `"dispersion": "d3bj"`.')

    def level(self) -> str:
        """``none``, ``d3bj`` or ``auto``.

        Raises:
            InvalidRequest: the two fields contradict each other.
        """
        if self.use_d3 and self.dispersion == "none":
            raise InvalidRequest("`use_d3` is true and `dispersion` is none.", "Leave one of them out.")
        return "d3bj" if self.use_d3 else self.dispersion or "auto"

    def as_given(self, kind: type[_Parameters]) -> _Parameters:
        """The parameters of the calculation, from the fields of the same names.

        Raises:
            InvalidRequest: values do not fit each other.
        """
        values = self.model_dump()
        return kind.from_mapping({field.name: values[field.name] for field in fields(kind) if field.name in values})  # type: ignore[arg-type]

    def check(self) -> None:
        """Checks what a schema cannot say.

        Raises:
            InvalidRequest: values do not fit each other.
        """
        self.level()

    def check_structure(self, atoms: Atoms, max_atoms: int) -> None:
        """Checks that the calculation can be made for ``atoms`` at all.

        Args:
            max_atoms: that one structure may have, supercells included.

        Raises:
            ForcegateError: it cannot.
        """


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        name: as in its path, ``bulk-modulus``; ``bulk_modulus`` where the answer is waited for.
        title: what it is, in a sentence.
        parameters: its fields in a request, besides model and structure.
    """

    name: str
    title: str
    parameters: type[TaskParameters]

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        """Carries out a task of this kind; ``parameters`` are those that ``frontend.tasks.submission`` made.

        Raises:
            ForcegateError: there is no result.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Calculation(Kind):
    """A kind that is one calculation for one structure and one model.

    Attributes:
        calculate: carries out one ``Job``; what it gives is an ``Answer``, or a mapping that is the result already.
        answer: the calculation's answer, whose fields are those of the result; None where ``calculate`` makes the result.
    """

    calculate: Callable[[Job], Answer | Mapping[str, Any]]
    answer: type[Answer] | None = None

    def run(self, parameters: dict[str, Any], context: Context) -> dict[str, Any]:
        from frontend.tasks.kinds.job import Job, Level

        asked = self.parameters.model_validate(parameters["parameters"])
        job = Job(
            context, Level(parameters["model"], parameters["head"], parameters["dispersion"]), atoms_of(parameters["atoms"]), asked
        )
        return self.carry_out(job)

    def carry_out(self, job: Job) -> dict[str, Any]:
        """The result of one job, with picture and provenance.

        Raises:
            ForcegateError: there is no result.
        """
        try:
            answer = self.calculate(job)
            result = answer.as_dict() if isinstance(answer, Answer) else dict(answer)
        except BROKEN as error:
            log.exception("a calculation broke", extra={"kind": self.name})
            raise EvaluationFailed(
                f"The calculation cannot be made for this structure: {type(error).__name__}: {str(error)[:200]}",
                "Look at the structure, and at parameters at the ends of their ranges.",
            ) from error
        if isinstance(answer, Answer):
            job.draw(answer, self.name)
        return result | {"model_name": job.level.model, "provenance": job.provenance()}


def atoms_of(mapping: Mapping[str, Any]) -> Atoms:
    """ASE's atoms from the canonical form of a structure."""
    return from_mapping(mapping).to_atoms()


def require_cell(atoms: Atoms, what: str) -> None:
    """Checks that ``atoms`` are periodic in all three directions.

    Raises:
        InvalidRequest: they are not.
    """
    if not atoms.pbc.all():
        raise InvalidRequest(
            f"{what} needs a structure that is periodic in all three directions; this one has pbc={atoms.pbc.tolist()}.", ""
        )
