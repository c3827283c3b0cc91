"""Many runs: comparisons, searches and benchmarks, and where they are made."""
