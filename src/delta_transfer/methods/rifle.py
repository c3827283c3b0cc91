"""RIFLE: the head is re-initialised in cycles, so that deep layers train."""

from delta_transfer.methods.base import WEIGHT_DECAY, Method

METHOD = Method(
    name="rifle",
    summary="RIFLE: the head is drawn anew in three cycles, so that deep layers learn",
    paper="https://arxiv.org/abs/2007.03349",
    head_init="random",
    weight_decay=WEIGHT_DECAY,
    strength_option="weight_decay",
    num_head_cycles=3,
)
