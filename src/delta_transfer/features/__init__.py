"""Features of a network: taps and stages, inputs, the frozen source, the linear probe."""
