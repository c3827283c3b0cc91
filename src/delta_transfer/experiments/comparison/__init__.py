"""Methods compared on the same data by several seeds."""
