"""Graphs: their batches, their loader, and TUDataset."""
