"""Plots and the HTML page of a run or a comparison, from the files that they left behind alone."""

from delta_transfer.report.accuracies import plot_accuracies
from delta_transfer.report.comparison_page import write_comparison_report
from delta_transfer.report.run_page import write_run_report

__all__ = ["plot_accuracies", "write_comparison_report", "write_run_report"]
