"""Training with Lightning: the module, the fit, its callbacks and checkpoints."""
