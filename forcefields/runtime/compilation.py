"""torch.compile for a loaded model: everything is compiled while it loads, and nothing after that.

What an adapter compiles is for any number of atoms, pairs and structures. It is then run in the kinds of passes that there are:
over many structures and over one, with gradients and for energies alone. From then on torch compiles no more: a pass that its
code is not for, such as one over a single atom (torch takes dimensions of 0 and 1 for constants), is evaluated as without
compiling. So nobody waits for a compiler, and no mix of sizes makes it run again and again.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from forcefields.base import ForceField
from forcefields.catalogue import Variant
from forcefields.runtime import golden, physics
from forcegate.errors import EnvironmentBroken

log = logging.getLogger(__name__)

EVERYTHING = frozenset({"energy", "forces", "stress"})


def compiled(force_field: ForceField, variant: Variant, state: Path) -> None:
    """Compiles a loaded model in place; no watchdog runs meanwhile.

    Args:
        state: the state folder, where compiled code is kept for the next load.

    Raises:
        EnvironmentBroken: says what the compiler said.
    """
    started = time.perf_counter()
    try:
        _prepare(state)
        force_field.compile()
        warm_up(force_field, variant)
    except Exception as error:  # of torch, of a compiler, of a linker: there is no end of them
        log.exception("the model could not be compiled")
        told = str(error).strip().partition("\n")[0]
        raise EnvironmentBroken(
            f"{variant.name} could not be compiled (FORCEGATE_COMPILE=on): {type(error).__name__}: {told[:300]}",
            "Install a C++ compiler (g++) and the headers of Python (python3-dev), or set FORCEGATE_COMPILE=off.",
        ) from error
    _compile_no_more()
    log.info("compiled", extra={"seconds": round(time.perf_counter() - started, 1)})


def warm_up(force_field: ForceField, variant: Variant) -> None:
    """Passes over the gate's structures, together and one alone, for each of the two kinds of passes."""
    normalised = [physics.normalise(structure, force_field.cutoff) for structure in golden.structures(variant).values()]
    graphs = [force_field.graph(structure, variant.default_head) for structure in normalised]
    for outputs in (EVERYTHING, frozenset({"energy"})):
        for together in (graphs, graphs[:1]):
            force_field.evaluate(together, outputs)


def _prepare(state: Path) -> None:
    """What torch's compiler needs to know of this process."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((state / "compiled").resolve()))
    # It starts Python by this name, to see which vector instructions work. In Triton's process it is the name of another program.
    if Path(sys.executable).parent != Path(sys.prefix) / "bin":
        sys.executable = str(Path(sys.prefix) / "bin" / "python")
    from torch._inductor import config

    # Each helper would be a process of its own with torch in it, which nobody ends with the model.
    config.compile_threads = 1


def _compile_no_more() -> None:
    import torch

    torch.compiler.set_stance("eager_on_recompile")
