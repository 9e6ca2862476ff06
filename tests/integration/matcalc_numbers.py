"""What matcalc makes of a served model, by our calculator: run by test_matcalc.py in an environment of matcalc's own.

python -m tests.integration.matcalc_numbers ADDRESS MODEL STRUCTURE: one line of JSON, in GPa, J/mol/K and eV.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from ase.io import read
from ase.units import kJ, mol
from matcalc import ElasticityCalc, EOSCalc, PhononCalc

from forcegate.calculator import ForcegateCalculator


def main(address: str, model: str, path: str) -> None:
    """Writes the numbers."""
    calculator = ForcegateCalculator(model, address)
    atoms = read(path)
    # Its strain is that of a length; 0.01 of it is 0.03 of the volume.
    eos = EOSCalc(calculator, relax_structure=False, max_abs_strain=0.01, n_points=7, allow_shape_change=False, fmax=1e-3)
    strains = (-0.01, -0.005, 0.005, 0.01)
    elasticity = ElasticityCalc(calculator, norm_strains=strains, shear_strains=strains, relax_structure=False, units_GPa=True)
    phonons = PhononCalc(
        calculator,
        atom_disp=0.01,
        supercell_matrix=np.diag([2, 2, 2]),
        relax_structure=False,
        t_min=50,
        t_max=300,
        t_step=250,
        write_phonon=False,
    )
    stiffness = elasticity.calc(atoms)
    tensor = np.array(stiffness["elastic_tensor"].voigt)
    thermal = phonons.calc(atoms)["thermal_properties"]
    found = {
        "bulk_modulus": float(eos.calc(atoms)["bulk_modulus_bm"]),
        "stiffness": [float(tensor[0, 0]), float(tensor[0, 1]), float(tensor[3, 3])],
        "bulk_modulus_vrh": float(stiffness["bulk_modulus_vrh"]),
        "shear_modulus_vrh": float(stiffness["shear_modulus_vrh"]),
        "heat_capacities": [float(value) for value in thermal["heat_capacity"]],
        "free_energies": [float(value) * kJ / mol for value in thermal["free_energy"]],
        "entropies": [float(value) for value in thermal["entropy"]],
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
