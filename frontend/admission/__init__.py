"""What the gateway takes on: structures and bytes that it holds (``bounds``), and the order and amount of work that goes to each
model (``queue``), in seconds that the model is going to need for it (``cost``)."""

from frontend.admission.bounds import SMALL_BODY, Admission
from frontend.admission.cost import Estimator
from frontend.admission.queue import ModelQueue, Place, Work

__all__ = ["SMALL_BODY", "Admission", "Estimator", "ModelQueue", "Place", "Work"]
