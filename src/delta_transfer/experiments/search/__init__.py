"""Hyperparameters searched by many trials."""
