"""Plots and the HTML page of a run, from the files that it left behind alone."""
