"""Penalties: terms that are added to the task loss."""

from delta_transfer.penalties.base import Penalty, Step
from delta_transfer.penalties.features import Delta
from delta_transfer.penalties.weights import L2, L2SP

__all__ = ["L2", "L2SP", "Delta", "Penalty", "Step"]
