"""What the commands show in the terminal: messages, and how far they are."""

import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from delta_transfer.errors import UserError


class Formatter(logging.Formatter):
    """The message alone; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        message = super().format(record)
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


def message(error: UserError) -> str:
    """What it says, without the traceback that a DataLoader's worker process puts before it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__qualname__}: ")[2].strip()


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


def explain(error: BaseException) -> str | None:
    """What to do about an error that is neither a mistake of ours nor one in the input.

    These are a full disk, files that may not be written or read, too little memory, and processes
    that load pictures and died.

    Args:
        error: as it was raised; the errors that it was raised from count as well.

    Returns:
        A message that names the file, if one is known; None for any other error.
    """
    found = (_explain_file(link) or _explain_machine(link) for link in _chain(error))
    return next((text for text in found if text is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _explain_file(error: BaseException) -> str | None:
    if not isinstance(error, OSError):
        # torch.save says neither which file it was nor why.
        torn = isinstance(error, RuntimeError) and any(part in str(error) for part in _TORN)
        return f"a checkpoint could not be written, as on a full disk: {_FREE}" if torn else None
    file = f"'{error.filename}'" if error.filename is not None else "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{file} could not be written ({error.strerror}): {_FREE}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"no access to {file} ({error.strerror}): change its permissions or those of its "
            "folder, or choose another place for what is written with --out"
        )
    return None


def _explain_machine(error: BaseException) -> str | None:
    text = str(error) if isinstance(error, RuntimeError) else ""
    if any(part in text for part in _WORKERS):
        return (
            "a process that loads pictures died, as it does when memory or shared memory runs out: "
            "load them without such processes, --workers 0"
        )
    # By its name, so that torch need not be loaded.
    full = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if full or isinstance(error, MemoryError) or any(part in text for part in _FULL):
        own = isinstance(error, MemoryError) or _FULL[0] in text
        where = "this machine" if own else "the GPU"
        return f"{where} has too little memory: lower --batch-size or --image-size"
    return None


_FREE = "free some space, or choose another place with --out"
_TORN = ("PytorchStreamWriter failed writing", "unexpected pos")
_WORKERS = ("DataLoader worker (pid", "</torch_", "Too many open files. Communication")
_FULL = ("can't allocate memory", "out of memory")


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
