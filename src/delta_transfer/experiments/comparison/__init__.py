"""Compare methods on the same data over several seeds."""
