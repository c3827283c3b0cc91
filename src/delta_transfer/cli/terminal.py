"""What the commands show in the terminal: messages, and how far they are."""

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
    """The message alone; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        message = as_flags(super().format(record))
        return f"warning: {message}" if record.levelno >= logging.WARNING else message


@contextmanager
def ending_at_sigterm(*, silently: bool = False) -> Iterator[None]:
    """Inside, SIGTERM ends the program as Ctrl-C does, unless something else listens to it.

    Args:
        silently: end with exit code 1 and no message.
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
    """Writes what was printed; what cannot be written fails here and not once more at exit.

    Raises:
        OSError: if it cannot be written, BrokenPipeError if nobody reads it any more.
    """
    if sys.stdout is None:  # closed by whoever started us
        return
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        raise
