"""Graphs as the inputs of a network, their batches, and TUDataset."""
