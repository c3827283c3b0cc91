"""Plots and the HTML page of a comparison, from the files of its runs alone."""
