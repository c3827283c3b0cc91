"""A progress bar on the terminal."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress and remaining time on a terminal.

    Args:
        title: what is being done.
        unit: what is counted, in the plural.

    Yields:
        A function of the number done and the total (0 if unknown); None without a terminal.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TimeRemainingColumn,
    )

    columns = (
        title,
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        f"{unit},",
        TimeRemainingColumn(),
        "left",
    )
    stderr = sys.stderr
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False)
    with bar, _logged_above(stderr):
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def _logged_above(stderr: TextIO) -> Iterator[None]:
    """Send log messages for stderr to its current replacement, so that the bar stays intact."""
    own = logging.getLogger("delta_transfer").handlers
    moved = [h for h in own if isinstance(h, logging.StreamHandler) and h.stream is stderr]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stderr)
