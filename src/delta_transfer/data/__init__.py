"""Datasets: where they come from, their splits, and how samples reach a network."""
