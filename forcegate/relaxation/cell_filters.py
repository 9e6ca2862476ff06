"""Which coordinates a relaxation moves: the atoms alone, or atoms and cell together.

The coordinates and forces are those of ASE's ``FrechetCellFilter`` and ``UnitCellFilter`` with their defaults (``cell_factor`` the
number of atoms, no mask). They are cheaper here: the coordinates are kept, where ASE takes the matrix logarithm of the deformation
at every call, and the nine directional derivatives of the matrix exponential come from one exponential.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from ase import Atoms
from scipy.linalg import expm, logm

from forcegate.contract import VOIGT


class FixedCell:
    """The atoms in a cell that does not change. Coordinates ``[N, 3]``, A, are the positions.

    Args:
        atoms: is moved.
        pressure: eV/A^3; of no effect here.
    """

    name: ClassVar[str] = "fixed"
    moves_cell: ClassVar[bool] = False

    def __init__(self, atoms: Atoms, pressure: float = 0.0) -> None:  # noqa: ARG002
        self.atoms = atoms
        self.x: np.ndarray = atoms.positions.copy()
        """The coordinates at which the atoms are."""

    def move(self, x: np.ndarray) -> None:
        """Puts the atoms, and the cell where it moves, at ``x``, or where constraints let them go."""
        self._set_positions(x)
        self.x = self.atoms.positions.copy()

    def forces(self, forces: np.ndarray, stress: np.ndarray | None) -> np.ndarray:  # noqa: ARG002
        """Minus the derivative of energy (and pV) by the coordinates, eV/A.

        Args:
            forces: ``[N, 3]``, eV/A, with constraints applied.
            stress: ``[6]``, eV/A^3, Voigt xx yy zz yz xz xy, ASE's sign.
        """
        return forces

    def enthalpy(self, energy: float) -> float:
        """What is minimised, in eV."""
        return energy

    def state(self) -> dict[str, np.ndarray]:
        """What ``restore`` needs."""
        return {"positions": self.atoms.positions.copy(), "cell": np.array(self.atoms.cell), "x": self.x}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts the atoms where they were when ``state`` was called."""
        self.atoms.set_cell(state["cell"], apply_constraint=False)
        self.atoms.positions[:] = state["positions"]
        self.x = state["x"]

    def _set_positions(self, positions: np.ndarray) -> None:
        if self.atoms.constraints:
            self.atoms.set_positions(positions)
        else:
            self.atoms.positions[:] = positions


class UnitCell(FixedCell):
    """Positions in the undeformed cell, and below them the deformation gradient times the number of atoms: ``[N + 3, 3]``.

    E. B. Tadmor, G. S. Smith, N. Bernstein and E. Kaxiras, Phys. Rev. B 59, 235 (1999).
    """

    name = "unit"
    moves_cell = True

    def __init__(self, atoms: Atoms, pressure: float = 0.0) -> None:
        super().__init__(atoms)
        self._first_cell = np.array(atoms.cell)
        self._pressure = pressure
        self._scale = float(len(atoms))
        self._constraints_move_cell = any(hasattr(constraint, "adjust_cell") for constraint in atoms.constraints)
        self._deformation = np.eye(3)
        self.x = np.concatenate([self.x, self._scale * self._rows(np.eye(3))])

    def move(self, x: np.ndarray) -> None:
        """Deforms cell and atoms together, then puts the atoms at their coordinates in the deformed cell."""
        atoms, count = self.atoms, len(self.atoms)
        self._deformation = self._deformation_of(x[count:] / self._scale)
        cell = self._first_cell @ self._deformation.T
        if not atoms.constraints:
            atoms.cell.array[:] = cell
            atoms.positions[:] = x[:count] @ self._deformation.T
            self.x = x.copy()
            return
        atoms.set_cell(cell, scale_atoms=True)
        atoms.set_positions(x[:count] @ self._deformation.T)
        rows = x[count:]
        if self._constraints_move_cell:
            self._deformation = np.linalg.solve(self._first_cell, atoms.cell.array).T
            rows = self._scale * self._rows(self._deformation)
        self.x = np.concatenate([np.linalg.solve(self._deformation, atoms.positions.T).T, rows])

    def forces(self, forces: np.ndarray, stress: np.ndarray | None) -> np.ndarray:
        """Forces on the atoms in the undeformed cell, and on the three rows of the deformation."""
        assert stress is not None
        volume = abs(np.linalg.det(self.atoms.cell.array))
        virial = np.empty((3, 3))
        for (row, column), component in zip(VOIGT, stress, strict=True):
            virial[row, column] = virial[column, row] = component
        virial[np.diag_indices(3)] += self._pressure
        gradient = -volume * virial @ np.linalg.inv(self._deformation.T)
        return np.concatenate([forces @ self._deformation, self._cell_forces(gradient) / self._scale])

    def enthalpy(self, energy: float) -> float:
        """Energy plus pressure times volume, eV."""
        return energy + self._pressure * float(abs(np.linalg.det(self.atoms.cell.array)))

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts atoms and cell where they were when ``state`` was called."""
        super().restore(state)
        self._deformation = self._deformation_of(self.x[len(self.atoms) :] / self._scale)

    def _rows(self, deformation: np.ndarray) -> np.ndarray:
        """The three rows of coordinates, over the number of atoms, that stand for a deformation gradient."""
        return deformation

    def _deformation_of(self, rows: np.ndarray) -> np.ndarray:
        return rows.copy()

    def _cell_forces(self, gradient: np.ndarray) -> np.ndarray:
        return gradient


class FrechetCell(UnitCell):
    """As ``UnitCell``, with the logarithm U of the deformation gradient F = exp(U) in place of F.

    With G the derivative by F, that by U is the adjoint of the Frechet derivative of exp at U, applied to G, which is the Frechet
    derivative at U^T in the direction G. It is read off exp([[U^T, G], [0, U^T]]): N. J. Higham, Functions of Matrices (2008),
    equation 3.16.
    """

    name = "frechet"

    def __init__(self, atoms: Atoms, pressure: float = 0.0) -> None:
        self._log = np.zeros((3, 3))
        super().__init__(atoms, pressure)

    def move(self, x: np.ndarray) -> None:
        """As ``UnitCell.move``; remembers the logarithm."""
        super().move(x)
        self._log = self.x[len(self.atoms) :] / self._scale

    def _rows(self, deformation: np.ndarray) -> np.ndarray:
        return np.zeros((3, 3)) if np.array_equal(deformation, np.eye(3)) else np.real(logm(deformation))

    def _deformation_of(self, rows: np.ndarray) -> np.ndarray:
        self._log = rows.copy()
        return expm(self._log)

    def _cell_forces(self, gradient: np.ndarray) -> np.ndarray:
        block = np.zeros((6, 6))
        block[:3, :3] = block[3:, 3:] = self._log.T
        block[:3, 3:] = gradient
        return expm(block)[:3, 3:]


CELL_FILTERS: dict[str, type[FixedCell]] = {kind.name: kind for kind in (FrechetCell, UnitCell, FixedCell)}
"""The filters by the names that users give them."""
