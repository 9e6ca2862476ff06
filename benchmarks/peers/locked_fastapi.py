"""``<environment>/bin/python -m benchmarks.peers.locked_fastapi MODEL PORT PACKAGES``: what most laboratories run.

One ASE calculator behind a lock and a plain FastAPI endpoint in front of it, in the family's environment. ``PACKAGES`` is a folder
with FastAPI and uvicorn, which come after everything that the environment has itself.
"""

import sys
from threading import Lock
from typing import Any


def main() -> None:
    """Serves until it is ended."""
    model, port, packages = sys.argv[1:]
    sys.path.append(packages)
    import uvicorn
    from ase import Atoms
    from fastapi import FastAPI
    from pydantic import BaseModel

    from benchmarks import calculators
    from benchmarks.in_process import checkpoint_of
    from forcefields import catalogue
    from forcefields.runtime.settings import ModelSettings, keep_out_of_home

    settings = ModelSettings.from_environment()
    keep_out_of_home(settings.state)
    variant = catalogue.load().resolve(model)
    calculator = calculators.calculator(variant, checkpoint_of(variant, settings.state))
    stress = calculators.gives_stress(variant)
    lock = Lock()

    class Structure(BaseModel):
        symbols: list[str]
        positions: list[list[float]]
        cell: list[list[float]]
        pbc: list[bool]

    app = FastAPI()

    @app.post("/calculate")
    def calculate(structure: Structure) -> dict[str, Any]:
        atoms = Atoms(structure.symbols, structure.positions, cell=structure.cell, pbc=structure.pbc)
        with lock:
            atoms.calc = calculator
            return {
                "energy": float(atoms.get_potential_energy()),
                "forces": atoms.get_forces().tolist(),
                "stress": atoms.get_stress().tolist() if stress else None,
            }

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
