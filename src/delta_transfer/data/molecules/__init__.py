"""Molecules: SMILES as graphs, tables of them, their splits and data sets."""
