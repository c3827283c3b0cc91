"""Utilities that know nothing of fine-tuning: files, devices, processes, seeds, logs."""
