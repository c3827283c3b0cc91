"""Fine-tuning methods: one file each, with its formula, penalty and table entry."""

from delta_transfer.methods.bss import BSS
from delta_transfer.methods.co_tuning import CoTuning
from delta_transfer.methods.delta import Delta
from delta_transfer.methods.gtot import GTOT
from delta_transfer.methods.l2 import L2
from delta_transfer.methods.l2sp import L2SP
from delta_transfer.methods.ldifs import LDIFS
from delta_transfer.methods.lwf import LwF
from delta_transfer.methods.penalty import Penalty, Step

__all__ = ["BSS", "GTOT", "L2", "L2SP", "LDIFS", "CoTuning", "Delta", "LwF", "Penalty", "Step"]
