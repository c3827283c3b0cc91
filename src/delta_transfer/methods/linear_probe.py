"""The linear probe: logistic regression on frozen features."""

from delta_transfer.methods.base import Method

METHOD = Method(
    name="probe",
    summary="linear probe: logistic regression on frozen features",
    paper="https://arxiv.org/abs/1805.08974",
    strength_option=None,
    trains_network=False,
)
