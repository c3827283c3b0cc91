"""Terminal output: log messages, signals and flushing."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from delta_transfer.errors import as_flags


class Formatter(logging.Formatter):
    """Format a record as its message, prefixed with "warning: " from that level on."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        message = as_flags(super().format(record))
        return f"warning: {message}" if record.levelno >= logging.WARNING else message


@contextmanager
def ending_at_sigterm(*, silently: bool = False) -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C, unless another handler is installed.

    Args:
        silently: exit with code 1 and no message instead.
    """
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    if not here or before != signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1) if silently else KeyboardInterrupt("terminated")

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def flush_output() -> None:
    """Flush standard output, so that a failure is raised here and not again at exit.

    Raises:
        OSError: if it cannot be written; BrokenPipeError if its reader has closed it.
    """
    if sys.stdout is None:  # closed by the parent process
        return
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        raise
