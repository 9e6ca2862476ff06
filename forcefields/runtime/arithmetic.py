"""How a model computes: the precision of float32 matrix products, NVIDIA's cuEquivariance, torch.compile.

The first two are for GPUs: a CPU always computes in full float32. All are settings of the service with the safe default, and part
of what the gate's memory covers: after a change the whole gate is run again.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import asdict, dataclass
from typing import Any

from forcefields.base import ForceField
from forcefields.catalogue import Family
from forcefields.runtime.settings import ModelSettings
from forcegate.errors import EnvironmentBroken

PACKAGES = ("cuequivariance_torch", "cuequivariance_ops_torch")
"""What has to be importable: the layers, and the kernels without which they are slower than what they replace."""


@dataclass(frozen=True)
class Arithmetic:
    """What was chosen for one model on one device.

    Attributes:
        matmul_precision: ``highest`` is float32 in every step; ``high`` and ``medium`` are torch's words for rounding the factors
            of float32 products to TensorFloat-32 or less.
        cuequivariance: whether the model's equivariant layers are those of cuEquivariance.
        compile: whether torch has compiled its network.
    """

    matmul_precision: str = "highest"
    cuequivariance: bool = False
    compile: bool = False

    def as_dict(self, dtype: str) -> dict[str, Any]:
        """For a model's report, and from there the provenance of answers; ``dtype`` is the one that the model is evaluated in."""
        return {"summary": self.summary(dtype)} | asdict(self)

    def summary(self, dtype: str) -> str:
        """In words, such as ``full float32``."""
        products = {"high": "TensorFloat-32", "medium": "bfloat16"}.get(self.matmul_precision)
        rounded = dtype == "float32" and products is not None
        words = [f"float32, matrix products in {products} where the device has it" if rounded else f"full {dtype}"]
        return ", ".join(words + ["cuEquivariance"] * self.cuequivariance + ["compiled"] * self.compile)

    def apply(self) -> None:
        """Sets torch's precision for this process. Packages change it when they load, so it is called after them too."""
        torch = sys.modules.get("torch")
        if torch is None:  # TensorFlow has its own, in forcefields/grace/tensorflow_settings.py
            return
        # It also sets cuBLAS's TF32; cuDNN has a switch of its own, which torch leaves on.
        torch.set_float32_matmul_precision(self.matmul_precision)
        torch.backends.cudnn.allow_tf32 = self.matmul_precision != "highest"


def chosen(settings: ModelSettings, family: Family, adapter: type[ForceField], device: str) -> Arithmetic:
    """What the settings mean for a family on a device.

    Raises:
        EnvironmentBroken: cuEquivariance is asked for and not installed.
    """
    compiled = settings.compile == "on" and adapter.takes_compile
    if device == "cpu":
        return Arithmetic(compile=compiled)
    wanted = settings.cuequivariance != "off" and adapter.takes_cuequivariance
    missing = [name for name in PACKAGES if wanted and importlib.util.find_spec(name) is None]
    if missing and settings.cuequivariance == "on":
        raise EnvironmentBroken(
            f"cuEquivariance is asked for (FORCEGATE_CUEQUIVARIANCE=on), and {family.name}'s environment has no {missing[0]}.",
            f"Run `environments/uv/bin/uv pip install --no-deps --python environments/{family.environment}/bin/python "
            f"-r forcefields/{family.name}/accelerated.txt`, or set FORCEGATE_CUEQUIVARIANCE=off.",
        )
    accelerated = wanted and not missing
    # cuEquivariance's kernels are compiled already, and torch could not look into them.
    return Arithmetic(settings.matmul_precision, accelerated, compiled and not accelerated)
