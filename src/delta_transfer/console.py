"""What the commands show in the terminal: messages and the table of a comparison."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from delta_transfer.errors import UserError

if TYPE_CHECKING:  # which loads torch
    from delta_transfer.compare import Row


class Formatter(logging.Formatter):
    """The message alone; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        message = super().format(record)
        return f"warning: {message}" if record.levelno >= logging.WARNING else message


def message(error: UserError) -> str:
    """What it says, without the traceback that a DataLoader's worker process puts before it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip()


def print_table(rows: "Sequence[Row]", *, seeds: int) -> None:
    """A line for each method."""
    from rich.console import Console
    from rich.table import Table

    view = Table(
        title=f"Test accuracy in percent, {seeds} {'seed' if seeds == 1 else 'seeds'}",
        title_justify="left",
    )
    for column in ("method", "mean", "std", "vs l2 (paired)", "95% interval", "seconds a run"):
        view.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        mean, deviation = 100 * row.accuracy.mean, 100 * row.accuracy.deviation
        versus = row.difference
        several = versus is not None and versus.count > 1
        view.add_row(
            row.method,
            f"{mean:.1f}",
            f"{deviation:.1f}" if row.accuracy.count > 1 else "-",
            "" if versus is None else f"{100 * versus.mean:+.1f}",
            f"{100 * versus.low:+.1f} to {100 * versus.high:+.1f}" if versus and several else "",
            f"{row.seconds:.0f}",
        )
    Console().print(view)
