"""``ForcegateCalculator``: a served model as an ASE calculator, over Triton's gRPC.

Energies in eV, forces in eV/A, stress in eV/A^3 (Voigt xx yy zz yz xz xy, ASE's sign), magnetic moments in mu_B.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from forcegate import errors
from forcegate.connection import Connection, extra_outputs, new_request_id
from forcegate.dispersion import UNCORRECTED, choice
from forcegate.retries import Attempts
from forcegate.structure import Structure, from_atoms


def results_of(answer: Mapping[str, np.ndarray], atoms: int) -> dict[str, Any]:
    """ASE's results from the tensors of one structure: energy as a float (and as ``free_energy``), the rest as arrays."""
    results: dict[str, Any] = {}
    for name, array in answer.items():
        if name == "energy":
            results["energy"] = results["free_energy"] = float(array[0, 0])
        elif name == "stress":
            if not np.isnan(array).any():
                results["stress"] = array[0]
        else:
            results[name] = array[0, :atoms]
    return results


class ForcegateCalculator(Calculator):
    """A model that a Forcegate service has loaded, as an ASE calculator.

    One geometry costs one call: energy, forces and, where the structure is periodic in all three directions, stress come
    together, whatever is asked for first. A further output of the model (``magmoms``, ``energies``, ``charges``) is computed once
    it has been asked for, and from then on with every geometry. The total charge and the spin multiplicity 2S+1 are read from
    ``atoms.info["charge"]`` and ``atoms.info["spin"]``. ``free_energy`` equals ``energy``.

    A model's process or a server that restarts is waited for within ``timeout``. Copies and pickles open a connection of their
    own. Threads that share one calculator take turns; with a calculator each, their calls share batches.

    Args:
        model: name of the model, such as ``sevennet-0``.
        address: ``host:port`` of Triton's gRPC; ``FORCEGATE_GRPC``, else ``127.0.0.1:8001``.
        head: head (MACE), modal (SevenNet) or task (UMA); the model's default where it is None.
        timeout: seconds for one calculation, waiting and retries included.
        connect_timeout: seconds to wait for a service or a model that has never answered this calculator.
        compute: what every call computes. ``("energy",)`` saves the forces where only energies are used (Monte Carlo).
        dispersion: ``none``; ``d3bj`` adds the served D3(BJ) correction of the model's functional; ``auto`` adds it where the
            model's policy recommends it. Per-atom ``energies`` are left out then: the correction has none, and they would not sum
            to ``energy``.

    Raises:
        ForcegateError: on calculation, the typed error of the model or of the service (``forcegate.errors``).
        PropertyNotImplementedError: on ``get_stress``, where the structure is not periodic in all three directions.
    """

    name = "forcegate"
    ignored_changes: set[str] = {"initial_charges", "initial_magmoms"}  # noqa: RUF012 - an instance variable in ASE's class
    discard_results_on_any_change = True

    def __init__(
        self,
        model: str,
        address: str | None = None,
        *,
        head: str | None = None,
        timeout: float = 60.0,
        connect_timeout: float = 10.0,
        compute: Sequence[str] = ("energy", "forces", "stress"),
        dispersion: str = "none",
    ) -> None:
        self.dispersion = choice(dispersion)
        self._correction: Connection | None = None
        self.connection = Connection(model, address)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self._compute = frozenset(compute)
        self._lock = threading.RLock()
        super().__init__(model=model, head=head)

    @property
    def implemented_properties(self) -> list[str]:  # type: ignore[override]
        """``energy``, ``free_energy``, ``forces``, ``stress`` and the model's further outputs; the first use asks the service."""
        attempts = self._attempts()
        extra = extra_outputs(self.connection.parameters(attempts))
        left_out = UNCORRECTED if self._correction_name(attempts) else ()
        return ["energy", "free_energy", "forces", "stress", *(name for name in extra if name not in left_out)]

    @property
    def provenance(self) -> dict[str, str]:
        """Where the numbers come from: model, head, checkpoint_sha256, functional, package and more, as the service states it."""
        return self.connection.provenance(self.parameters["head"], self._attempts(), self.dispersion)

    def set(self, **parameters: Any) -> dict[str, Any]:
        """Changes ``model`` or ``head``; the results of the former one are dropped."""
        if unknown := set(parameters) - {"model", "head"}:
            raise TypeError(f"ForcegateCalculator has no parameter {', '.join(sorted(unknown))}; `model` and `head` can be set.")
        changed = super().set(**parameters)
        if "model" in changed and self.connection.model != parameters["model"]:
            self.connection.close()
            self.connection = Connection(parameters["model"], self.connection.address)
        return changed

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """One property of ``atoms`` by ASE's rules; computed only where the last results do not hold it."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation; ASE's own check leaves out the total charge and the spin."""
        changes = list(super().check_state(atoms, tol))
        if self.atoms is not None:
            changes += [key for key in ("charge", "spin") if self.atoms.info.get(key) != atoms.info.get(key)]
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Asks the model for ``properties`` and all that ``compute`` names, unless the last results hold them."""
        super().calculate(atoms, properties, system_changes)
        if system_changes:
            self.results = {}
        structure = from_atoms(self.atoms)
        wanted = {"energy" if name == "free_energy" else name for name in properties}
        if "stress" in wanted and not structure.pbc.all():
            raise PropertyNotImplementedError(
                "Stress is defined only for a structure that is periodic in all three directions; "
                f"this one has pbc={structure.pbc.tolist()}."
            )
        request_id = new_request_id()
        try:
            attempts = self._attempts()
            correction = self._correction_name(attempts)
            if correction and (impossible := wanted & UNCORRECTED):
                raise PropertyNotImplementedError(f"With {correction} added there are no {', '.join(sorted(impossible))}.")
            self._compute |= wanted
            outputs = self._compute - set(self.results) - (set() if structure.pbc.all() else {"stress"})
            outputs -= UNCORRECTED if correction else set()
            request = self.connection.request([structure], sorted(outputs), self.parameters["head"], request_id)
            answer = self.connection.infer(request, attempts)
            if correction:
                self._correct(correction, answer, structure, request_id, attempts)
        except errors.ForcegateError as error:
            error.request_id = request_id
            raise
        self.results |= results_of(answer, len(structure))

    def _correction_name(self, attempts: Attempts) -> str | None:
        return self.connection.correction(self.parameters["head"], self.dispersion, attempts)

    def _correct(self, name: str, answer: dict[str, np.ndarray], structure: Structure, request_id: str, attempts: Attempts) -> None:
        """Adds the correction by the model ``name`` to energy, forces and stress."""
        outputs = sorted({"energy", "forces", "stress"} & set(answer))
        if not outputs:
            return
        if self._correction is None or self._correction.model != name:
            self._correction = Connection(name, self.connection.address)
        request = self._correction.request([structure], outputs, None, request_id)
        for output, values in self._correction.infer(request, attempts).items():
            answer[output] = answer[output] + values

    def close(self) -> None:
        """Ends the connections; a later calculation opens new ones."""
        self.connection.close()
        if self._correction is not None:
            self._correction.close()

    def __enter__(self) -> ForcegateCalculator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _attempts(self) -> Attempts:
        return Attempts(self.timeout, self.connect_timeout)
