"""Estimators of channel attention, from one pass over the data to exact ablation."""
