"""TensorFlow's settings for a whole process, in one place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def prepared(state: Path, matmul_precision: str = "highest") -> Any:
    """TensorFlow, set up: what XLA compiles is kept in ``state``, and there are as many threads as for everybody else.

    It reads settings from the process's environment when it begins, so nothing may import it before this function.
    """
    cache = (state / "xla").resolve()
    cache.mkdir(parents=True, exist_ok=True)
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if "tf_xla_persistent_cache_directory" not in flags:
        os.environ["TF_XLA_FLAGS"] = f"{flags} --tf_xla_persistent_cache_directory={cache}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Of tensorpotential, which says so on standard output when it has to set it itself.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import tensorflow

    threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    tensorflow.config.experimental.enable_tensor_float_32_execution(matmul_precision != "highest")
    for gpu in tensorflow.config.list_physical_devices("GPU"):
        tensorflow.config.experimental.set_memory_growth(gpu, True)
    return tensorflow
