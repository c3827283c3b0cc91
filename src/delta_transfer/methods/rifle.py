"""RIFLE: re-initialises the head in cycles, so that deep layers train."""

from delta_transfer.methods.base import WEIGHT_DECAY, Method

METHOD = Method(
    name="rifle",
    summary="RIFLE: re-initialises the head in three cycles, so that deep layers train",
    paper="https://arxiv.org/abs/2007.03349",
    head_init="random",
    weight_decay=WEIGHT_DECAY,
    strength_option="weight_decay",
    num_head_cycles=3,
)
