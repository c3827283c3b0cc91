"""The log file of a run."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.utils.diagnostics import message


@contextlib.contextmanager
def log_to(path: Path, header: Sequence[str], *, resume: bool = False) -> Iterator[None]:
    """Copy the package's log messages to a file, below a header; an error in the body as well.

    Args:
        path: the file; its folder exists.
        header: lines to write first.
        resume: append to the file instead of replacing it.
    """
    with path.open("a" if resume else "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in header)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("delta_transfer")
    package.addHandler(handler)
    try:
        with _info_level(package):
            yield
    except BaseException as error:  # the terminal shows it anyway
        text = message(error) if isinstance(error, UserError) else str(error)
        text = text or type(error).__name__
        handler.handle(package.makeRecord(package.name, logging.ERROR, "", 0, text, (), None))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _info_level(package: logging.Logger) -> Iterator[None]:
    """Let the package's handlers see all messages, and the program's no more than before."""
    level, own, propagate = package.getEffectiveLevel(), package.level, package.propagate
    if level <= logging.INFO:
        yield
        return
    relay = _Relay(level)
    package.addHandler(relay)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        package.propagate = propagate
        package.setLevel(own)
        package.removeHandler(relay)


class _Relay(logging.Handler):
    """Passes records on to the handlers of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        logging.getLogger().callHandlers(record)
