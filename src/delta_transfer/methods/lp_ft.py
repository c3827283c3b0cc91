"""LP-FT: plain fine-tuning with the head initialised as the linear probe."""

from delta_transfer.methods.base import WEIGHT_DECAY, Method

METHOD = Method(
    name="lp_ft",
    summary="plain fine-tuning: head initialised as the linear probe, weight decay",
    paper="https://arxiv.org/abs/2202.10054",
    weight_decay=WEIGHT_DECAY,
    strength_option="weight_decay",
)
