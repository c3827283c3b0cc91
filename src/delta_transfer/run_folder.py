"""The folder of a run: its name, whether it may be written, and its log."""

import contextlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from delta_transfer.config import TrainConfig
from delta_transfer.data.paths import user_path
from delta_transfer.errors import UserError
from delta_transfer.result import COMPARISON_COLUMNS

LOG = "train.log"

_OF_A_RUN = frozenset(
    f"""{LOG} config.yaml metrics.csv hparams.yaml tensorboard drift.csv attention.safetensors
    checkpoints refit folds predictions.csv examples.csv examples model result.json report.html
    evaluation""".split()
)


def default_folder(config: TrainConfig) -> Path:
    """runs/DATA-METHOD-TIME, with a number behind it if another run has just taken that name."""
    first = Path("runs") / f"{data_name(config.data)}-{config.method}-{time_stamp()}"
    return next(f for f in _numbered(first) if not f.exists())


def data_name(data: str) -> str:
    """What a data set is called in the name of a file or folder."""
    path = user_path(data.removeprefix("hf/"))
    name = path.resolve().name.removesuffix(".csv") if path.exists() else data
    return name.replace("/", "-")


def time_stamp() -> str:
    """Date and time as part of a name."""
    return time.strftime("%Y%m%d-%H%M%S")


def _numbered(first: Path) -> Iterator[Path]:
    yield first
    for number in itertools.count(2):
        yield first.with_name(f"{first.name}-{number}")


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Checks that a run may be written into a folder.

    Args:
        folder: where it is to lie.
        config: what the run reads, and whether an old one may be replaced.

    Raises:
        UserError: if the folder is in use, lies among the pictures, or holds something that is no
            run of ours or that the new run reads.
    """
    data = config.data
    check_place(folder, data=data)
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not config.overwrite:
        raise UserError(
            f"--out {folder} is not empty: give another folder, or --overwrite to replace the run"
        )
    strange = _strange(folder)
    if strange is not None:
        raise UserError(
            f"--out {folder} holds something that is no run ({strange}), which --overwrite does "
            "not delete: give another folder"
        )
    for read in (data, config.weights, config.attention, config.data_root, config.model):
        path = Path((read or "").removeprefix("local-dir:").removeprefix("hf/"))
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--out {folder} holds {path}, which the run reads and --overwrite would delete: "
                "give another folder"
            )


def check_place(folder: Path, *, data: str) -> None:
    """Checks that there may be a folder at a place.

    Args:
        folder: where it is to lie.
        data: the pictures that it must not lie among.

    Raises:
        UserError: if it would, a file is there, or it cannot be written.
    """
    if Path(data).is_dir() and folder.resolve().is_relative_to(Path(data).resolve()):
        raise UserError(
            f"--out {folder} lies in the data folder {data}, where it would count as a class: give "
            "a folder outside of it"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {folder} cannot be written, because of {there}: give another --out")


def make_folder(folder: Path, *, overwrite: bool) -> None:
    """An empty folder, in the place of an old run if that may be replaced.

    Raises:
        UserError: if it cannot be made, or has been filled since it was checked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = list(folder.iterdir())
        if entries and not overwrite:
            raise UserError(f"another run has written into {folder} meanwhile: give another --out")
        for entry in entries:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}): give another --out"
        ) from error


def _strange(folder: Path) -> str | None:
    """What in a folder belongs to no run and no comparison, finished or not; None if nothing."""
    entries = {path.name for path in folder.iterdir()}
    if not entries:
        return None
    if "results.csv" in entries:
        header = (folder / "results.csv").read_bytes().splitlines()[:1]
        if header != [",".join(COMPARISON_COLUMNS).encode()]:
            return "results.csv"
        runs = sorted(entries - {"results.csv", "report.html"})
        inside = [_strange(folder / name) if (folder / name).is_dir() else "" for name in runs]
        found = [(name, what) for name, what in zip(runs, inside, strict=True) if what is not None]
        return str(Path(*found[0])) if found else None
    try:
        TrainConfig.load(folder / "config.yaml")
    except UserError:
        return f"no {LOG} and config.yaml of one"
    if LOG not in entries:
        return f"no {LOG} and config.yaml of one"
    return min(entries - _OF_A_RUN, default=None)


@contextlib.contextmanager
def log_to(path: Path, header: Sequence[str]) -> Iterator[None]:
    """Inside, what the package logs goes to a file too, below some lines that came before.

    So does an error that ends it.
    """
    path.write_text("".join(f"{line}\n" for line in header), encoding="utf-8")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("delta_transfer")
    package.addHandler(handler)
    try:
        with _said_in_full(package):
            yield
    except BaseException as error:  # the terminal shows it by itself
        said = str(error) or type(error).__name__
        handler.handle(package.makeRecord(package.name, logging.ERROR, "", 0, said, (), None))
        raise
    finally:
        package.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _said_in_full(package: logging.Logger) -> Iterator[None]:
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
