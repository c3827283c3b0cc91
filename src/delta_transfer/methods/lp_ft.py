"""LP-FT: plain fine-tuning that starts from the linear probe's head."""

from delta_transfer.methods.base import WEIGHT_DECAY, Method

METHOD = Method(
    name="lp_ft",
    summary="plain fine-tuning that starts from the linear probe's head",
    paper="https://arxiv.org/abs/2202.10054",
    weight_decay=WEIGHT_DECAY,
    strength_option="weight_decay",
)
