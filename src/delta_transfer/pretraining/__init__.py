"""Pretraining on graphs without labels."""
