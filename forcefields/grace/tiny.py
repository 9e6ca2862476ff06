"""GRACE models of the package's own one- and two-layer architectures, tiny and in real size, with random weights."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from sys import stderr

from ase.data import chemical_symbols, covalent_radii

from forcefields.grace.tensorflow_settings import prepared
from forcefields.runtime.settings import ModelSettings

ELEMENTS = chemical_symbols[1:90]
COMMON = {
    "rcut": 5.0,
    "avg_n_neigh": 40.0,
    "n_rad_base": 6,
    "embedding_size": 16,
    "n_mlp_dens": 4,
    "max_order": 3,
    "constant_out_scale": 40.0,
}


def make(kind: str, path: Path) -> None:
    """Writes the SavedModel ``1l`` or ``2l``, or with weights in float32 ``1l-float32``, as a folder.

    ``1l-medium`` and ``2l-medium`` have the size that the package's own presets call medium, in float32: that of
    GRACE-1L-OMAT-medium and GRACE-2L-OMAT-medium, if these were made with the presets of the same name.
    """
    tf = prepared(ModelSettings.from_environment().state)
    # The package greets on standard output, which belongs to whoever runs us.
    with redirect_stdout(stderr):
        from tensorpotential.potentials import get_preset_settings
        from tensorpotential.potentials.presets import GRACE_1LAYER_v2_25, GRACE_2LAYER_v2_25
        from tensorpotential.tpmodel import TPModel

    tf.keras.utils.set_random_seed(20240711)
    tf.config.experimental.enable_op_determinism()
    elements = {symbol: index for index, symbol in enumerate(ELEMENTS)}
    shifts = {index: float(-2.0 - 3.0 * covalent_radii[index + 1]) for index in elements.values()}
    if kind.endswith("medium"):
        preset, name = (
            (GRACE_1LAYER_v2_25, "GRACE_1LAYER_latest") if kind == "1l-medium" else (GRACE_2LAYER_v2_25, "GRACE_2LAYER_latest")
        )
        instructions = preset(elements, avg_n_neigh=60.0, atomic_shift_map=shifts, **get_preset_settings(name)["medium"])
    elif kind.startswith("1l"):
        instructions = GRACE_1LAYER_v2_25(elements, lmax=2, n_rad_max=8, prod_func_n_max=8, atomic_shift_map=shifts, **COMMON)
    else:
        instructions = GRACE_2LAYER_v2_25(
            elements,
            lmax=[2, 1],
            n_rad_max=[8, 8],
            prod_func_n_max=[8, 8],
            indicator_lmax=1,
            atomic_shift_map=shifts,
            **COMMON,
        )
    model = TPModel(instructions.get_instructions())
    model.build(tf.float32 if kind.endswith(("float32", "medium")) else tf.float64, jit_compile=True)
    model.save_model(str(path), jit_compile=True)
