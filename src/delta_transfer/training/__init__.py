"""Training with Lightning."""

from delta_transfer.training.callbacks import MeasureDrift, RedrawHead, TellLoss
from delta_transfer.training.crops import CropAverage
from delta_transfer.training.fit import Fitted, fit
from delta_transfer.training.inference import predict_answers
from delta_transfer.training.layer_decay import layer_scales
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.optimization import Optimization
from delta_transfer.training.plan import Fit
from delta_transfer.training.precision import Precision, autocast, find_precision
from delta_transfer.training.saving import Saving
from delta_transfer.training.trial import TRIAL_STEPS, choose_rate, try_rates

__all__ = [
    "TRIAL_STEPS",
    "CropAverage",
    "Fit",
    "Fitted",
    "MeasureDrift",
    "Mixing",
    "Optimization",
    "Precision",
    "RedrawHead",
    "Saving",
    "TellLoss",
    "autocast",
    "choose_rate",
    "find_precision",
    "fit",
    "layer_scales",
    "predict_answers",
    "try_rates",
]
