"""Penalties: terms that are added to the task loss."""

from delta_transfer.penalties.base import Penalty, Step
from delta_transfer.penalties.features import Delta
from delta_transfer.penalties.outputs import CoTuning, LwF
from delta_transfer.penalties.pooled import LDIFS
from delta_transfer.penalties.spectral import BSS
from delta_transfer.penalties.transport import GTOT
from delta_transfer.penalties.weights import L2, L2SP

__all__ = ["BSS", "GTOT", "L2", "L2SP", "LDIFS", "CoTuning", "Delta", "LwF", "Penalty", "Step"]
