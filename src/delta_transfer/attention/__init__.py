"""Estimators of channel attention."""

from delta_transfer.attention.estimate import ESTIMATORS, estimate_attention

__all__ = ["ESTIMATORS", "estimate_attention"]
