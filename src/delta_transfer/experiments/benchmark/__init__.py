"""Reproduce published results, and compare ours to them."""
