"""Task types, their metrics and losses, statistics, and the result of a run."""
