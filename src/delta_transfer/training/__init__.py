"""Training with Lightning."""

from delta_transfer.training.callbacks import MeasureDrift, RedrawHead
from delta_transfer.training.crops import CropAverage
from delta_transfer.training.fit import Fit, Fitted, fit
from delta_transfer.training.inference import accuracy, predict_probabilities
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.module import Optimization
from delta_transfer.training.saving import Saving

__all__ = [
    "CropAverage",
    "Fit",
    "Fitted",
    "MeasureDrift",
    "Mixing",
    "Optimization",
    "RedrawHead",
    "Saving",
    "accuracy",
    "fit",
    "predict_probabilities",
]
