"""A saved run at work: predictions and evaluations, and their files."""
