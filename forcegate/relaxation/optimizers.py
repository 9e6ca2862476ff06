"""FIRE, L-BFGS and BFGS, each as a function of what came before: given coordinates and forces, the next coordinates.

They take the steps that ASE's optimizers of the same names take with their defaults, to the last rounding. What differs is who
calls whom: ASE's ask the atoms for forces and so hold the thread until they come, these are told the forces when they are there,
and all that they remember is a dictionary of arrays that can be written down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

LONGEST_STEP = 0.2
"""ASE's ``maxstep``, in A: for FIRE the length of the whole step, for the others that of the atom that moves most."""

CURVATURE = 70.0
"""The Hessian that L-BFGS and BFGS begin with, in eV/A^2: ASE's ``alpha``."""


class Optimizer(ABC):
    """The memory of one relaxation. Coordinates and forces are flat float64 arrays, in A and eV/A."""

    name: ClassVar[str]

    @abstractmethod
    def step(self, x: np.ndarray, forces: np.ndarray) -> np.ndarray:
        """The next coordinates, a new array.

        Args:
            x: the present ones, those that the last call returned or what constraints have made of them.
            forces: the forces there.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """What ``restore`` needs to go on as if nothing had happened."""

    @abstractmethod
    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up a state that ``state`` gave."""


class Fire(Optimizer):
    """The fast inertial relaxation engine. E. Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)."""

    name = "fire"
    longest_time_step, patience, growth, shrinkage, mixing, mixing_decay = 1.0, 5, 1.1, 0.5, 0.1, 0.99

    def __init__(self) -> None:
        self._velocity: np.ndarray | None = None
        self._time_step, self._mixing, self._downhill = 0.1, self.mixing, 0

    def step(self, x: np.ndarray, forces: np.ndarray) -> np.ndarray:
        """One step of semi-implicit Euler with the velocity turned towards the forces while it points downhill."""
        if self._velocity is None:
            self._velocity = np.zeros_like(x)
        elif np.vdot(forces, self._velocity) > 0.0:
            speed, strength = np.sqrt(np.vdot(self._velocity, self._velocity)), np.sqrt(np.vdot(forces, forces))
            self._velocity = (1.0 - self._mixing) * self._velocity + self._mixing * forces / strength * speed
            if self._downhill > self.patience:
                self._time_step = min(self._time_step * self.growth, self.longest_time_step)
                self._mixing *= self.mixing_decay
            self._downhill += 1
        else:
            self._velocity = np.zeros_like(x)
            self._mixing = self.mixing
            self._time_step *= self.shrinkage
            self._downhill = 0
        self._velocity = self._velocity + self._time_step * forces
        move = self._time_step * self._velocity
        length = np.sqrt(np.vdot(move, move))
        if length > LONGEST_STEP:
            move = LONGEST_STEP * move / length
        return x + move

    def state(self) -> dict[str, np.ndarray]:
        """Velocity, time step, mixing and the number of steps downhill."""
        state = {"fire": np.array([self._time_step, self._mixing, self._downhill], dtype=np.float64)}
        return state if self._velocity is None else state | {"velocity": self._velocity}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up a state that ``state`` gave."""
        self._time_step, self._mixing = (float(value) for value in state["fire"][:2])
        self._downhill = int(state["fire"][2])
        self._velocity = state.get("velocity")


class LBfgs(Optimizer):
    """BFGS with the inverse Hessian as a product of the last steps. J. Nocedal, Math. Comp. 35, 773 (1980), algorithm 7.4 of
    Nocedal and Wright, Numerical Optimization (2006)."""

    name = "lbfgs"
    memory = 100

    def __init__(self) -> None:
        self._moves: list[np.ndarray] = []
        self._gains: list[np.ndarray] = []
        self._weights: list[float] = []
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, x: np.ndarray, forces: np.ndarray) -> np.ndarray:
        """A step along the approximate Newton direction, shortened where it is too long."""
        if self._last is not None:
            self._remember(x - self._last[0], self._last[1] - forces)
        self._last = x.copy(), forces.copy()
        direction = forces.copy()
        shares = []
        for move, gain, weight in zip(reversed(self._moves), reversed(self._gains), reversed(self._weights), strict=True):
            shares.append(weight * np.dot(move, direction))
            direction -= shares[-1] * gain
        direction *= 1.0 / CURVATURE
        for move, gain, weight, share in zip(self._moves, self._gains, self._weights, reversed(shares), strict=True):
            direction += move * (share - weight * np.dot(gain, direction))
        return x + _shortened(direction)

    def _remember(self, move: np.ndarray, gain: np.ndarray) -> None:
        self._weights.append(1.0 / np.dot(gain, move))
        self._moves.append(move)
        self._gains.append(gain)
        if len(self._moves) > self.memory:
            for kept in (self._moves, self._gains, self._weights):
                kept.pop(0)

    def state(self) -> dict[str, np.ndarray]:
        """The last moves, what they changed in the gradient, and where the last one began."""
        if self._last is None:
            return {}
        kept = {"last": np.array(self._last)}
        if self._moves:
            kept |= {"moves": np.array(self._moves), "gains": np.array(self._gains), "weights": np.array(self._weights)}
        return kept

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up a state that ``state`` gave."""
        self._last = (state["last"][0], state["last"][1]) if "last" in state else None
        self._moves, self._gains = list(state.get("moves", ())), list(state.get("gains", ()))
        self._weights = [float(weight) for weight in state.get("weights", ())]


class Bfgs(Optimizer):
    """BFGS with the whole Hessian, whose eigenvalues are taken without their signs. It costs the cube of the number of atoms."""

    name = "bfgs"

    def __init__(self) -> None:
        self._hessian: np.ndarray | None = None
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def step(self, x: np.ndarray, forces: np.ndarray) -> np.ndarray:
        """A Newton step with the present Hessian, shortened where it is too long."""
        if self._hessian is None:
            self._hessian = np.eye(len(x)) * CURVATURE
        elif self._last is not None and np.abs(move := x - self._last[0]).max() >= 1e-7:
            gain = self._last[1] - forces
            bent = self._hessian @ move
            self._hessian += np.outer(gain, gain) / (move @ gain) - np.outer(bent, bent) / (move @ bent)
        self._last = x.copy(), forces.copy()
        eigenvalues, vectors = np.linalg.eigh(self._hessian)
        return x + _shortened(vectors @ (forces @ vectors / np.fabs(eigenvalues)))

    def state(self) -> dict[str, np.ndarray]:
        """The Hessian, and where the last step began."""
        if self._hessian is None or self._last is None:
            return {}
        return {"hessian": self._hessian, "last": np.array(self._last)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes up a state that ``state`` gave."""
        self._hessian = state.get("hessian")
        self._last = (state["last"][0], state["last"][1]) if "last" in state else None


OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (Fire, LBfgs, Bfgs)}
"""The optimizers by the names that users give them."""


def longest(rows: np.ndarray) -> float:
    """The largest norm among the rows of three that a flat array is made of: ASE's measure of forces and of steps."""
    return float(np.sqrt((rows * rows).reshape(-1, 3).sum(axis=1).max(initial=0.0)))


def _shortened(move: np.ndarray) -> np.ndarray:
    length = longest(move)
    return move * (LONGEST_STEP / length) if length >= LONGEST_STEP else move
