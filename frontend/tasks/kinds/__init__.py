"""The kinds of tasks, one module each."""

from frontend.tasks.kinds import batch, multi_model
from frontend.tasks.kinds.calculations import CALCULATIONS
from frontend.tasks.kinds.kind import Calculation, Kind, TaskParameters

KINDS: dict[str, Kind] = {**CALCULATIONS, batch.KIND.name: batch.KIND, multi_model.KIND.name: multi_model.KIND}
"""Every kind by its name, as in its path."""

__all__ = ["CALCULATIONS", "KINDS", "Calculation", "Kind", "TaskParameters"]
