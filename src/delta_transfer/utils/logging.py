"""The log of a run: a file beside its results."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path


@contextlib.contextmanager
def log_to(path: Path, header: Sequence[str], *, resume: bool = False) -> Iterator[None]:
    """Inside, what the package logs goes to a file too, below some lines that came before.

    So does an error that ends it. If asked, all that goes below what the file has.
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
    except BaseException as error:  # the terminal shows it by itself
        said = str(error) or type(error).__name__
        handler.handle(package.makeRecord(package.name, logging.ERROR, "", 0, said, (), None))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _info_level(package: logging.Logger) -> Iterator[None]:
    """Inside, its own handlers hear of everything, and those of the program no more than before."""
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
    """Hands records on to the handlers of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        """Unless they are below the level."""
        logging.getLogger().callHandlers(record)
