"""Training with Lightning."""

from delta_transfer.training.callbacks import MeasureDrift
from delta_transfer.training.fit import Fit, fit
from delta_transfer.training.inference import accuracy, predict_probabilities
from delta_transfer.training.module import Optimization

__all__ = ["Fit", "MeasureDrift", "Optimization", "accuracy", "fit", "predict_probabilities"]
