"""Relaxation of many structures at once over a served model.

Three layers: ``optimizers`` and ``cell_filters`` say where a structure goes next; ``relaxation`` makes a state machine of them that
asks for one evaluation after the other; ``driver`` moves many of those with the evaluations of all of them in flight together.
"""

from forcegate.relaxation.driver import InProcess, drive, drive_one, with_calculator
from forcegate.relaxation.many import iterate_relaxations, relax_many
from forcegate.relaxation.relaxation import Relaxation, Relaxed, Settings
from forcegate.relaxation.store import Store

__all__ = [
    "InProcess",
    "Relaxation",
    "Relaxed",
    "Settings",
    "Store",
    "drive",
    "drive_one",
    "iterate_relaxations",
    "relax_many",
    "with_calculator",
]
