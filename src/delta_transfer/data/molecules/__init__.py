"""Datasets of molecules: SMILES, splits and sources."""
