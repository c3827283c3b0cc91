"""What the commands show in the terminal: messages, and how far they are."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Shows on a terminal how much is done and how long the rest takes.

    Args:
        what: is being done.
        unit: of what is counted.

    Yields:
        To be told of how much is done, and of how much there is, 0 where that is not known; None
        where there is no terminal.
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
        what,
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
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


@contextmanager
def _logged_above(stderr: TextIO) -> Iterator[None]:
    """Inside, what is logged to stderr goes to what has taken its place and spares the bar."""
    own = logging.getLogger("delta_transfer").handlers
    moved = [h for h in own if isinstance(h, logging.StreamHandler) and h.stream is stderr]
    for handler in moved:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in moved:
            handler.setStream(stderr)
