"""The folder of a run or a comparison: its name, and whether it may be written."""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import LOCK, check_unlocked
from delta_transfer.utils.paths import user_path

LOG_FILE = "train.log"
COMPARISON_FILE = "compare.yaml"  # the options of a comparison
SEARCH_FILE = "search.yaml"  # the options of a search
TRIALS = "trials"  # its trials, each in a folder of its number
SEARCH_RUNS = ("default", "best")  # its whole runs

_RUN_FILES = frozenset(
    f"""{LOG_FILE} config.yaml lr.csv metrics.csv hparams.yaml tensorboard drift.csv
    attention.safetensors checkpoints weaker refit folds usage.json predictions.csv examples.csv
    molecules.csv examples model result.json report.html evaluation export hub wandb""".split()
)
_COMPARISON_FILES = frozenset([COMPARISON_FILE, LOCK, "results.csv", "report.html"])
_SEARCH_FILES = frozenset(
    [
        SEARCH_FILE,
        LOCK,
        "search.db",
        "search.db-journal",
        "trials.csv",
        "best.yaml",
        TRIALS,
        *SEARCH_RUNS,
    ]
)
_TRIAL_FILES = _RUN_FILES | {"outcome.json", "losses.json", LOCK}
_AFTER_TRAINING = ("examples", "model")  # folders, which may be half full
# Options that change no figure, but for the last digits on another device.
RESULT_NEUTRAL_OPTIONS = (
    *("out", "overwrite", "resume", "device", "devices", "num_nodes", "strategy"),
    *("num_workers", "image_cache_gb"),
    *("checkpoint_minutes", "checkpoint_steps", "loggers"),
)
_MARKS = (
    COMPARISON_FILE,
    SEARCH_FILE,
    LOG_FILE,
    "config.yaml",
)  # by these a folder is known for one of ours


def default_folder(config: TrainConfig) -> Path:
    """runs/DATA-METHOD-TIME, with a number behind it if another run has just taken that name."""
    return free_folder(f"{data_name(config.data)}-{config.method}-{time_stamp()}")


def free_folder(name: str) -> Path:
    """A folder in `runs` that is not there yet, of that name or with a number behind it."""
    return next(folder for folder in _numbered(Path("runs") / name) if not folder.exists())


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
        UserError: if the folder is in use, lies among the images, or holds something that is no
            run of ours or that the new run reads.
    """
    data = config.data
    check_output_location(folder, data=data)
    check_unlocked(folder)
    if not folder.is_dir() or _names(folder) <= {LOG_FILE}:  # which a failed run leaves
        return
    if config.resume:
        _check_same(folder, config)
        return
    if not config.overwrite:
        raise UserError(
            f"--out {folder} is not empty: give another folder, or --overwrite to replace the run "
            "(--resume of train goes on with one that was broken off)"
        )
    strange = _find_foreign_entry(folder)
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


def check_output_location(folder: Path, *, data: str) -> None:
    """Checks that there may be a folder at a place.

    Args:
        folder: where it is to lie.
        data: the images that it must not lie among.

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


def make_folder(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """An empty folder, in the place of an old run if that may be replaced.

    Args:
        folder: where it is to lie.
        overwrite: delete what is there.
        resume: keep what training has left there, but not what writes that were killed have.

    Raises:
        UserError: if it cannot be made, or has been filled since it was checked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            remove_temporary_files(folder)
            for name in _AFTER_TRAINING:
                shutil.rmtree(folder / name, ignore_errors=True)
            return
        entries = [entry for entry in folder.iterdir() if entry.name != LOCK]
        entries.sort(key=lambda entry: entry.name in _MARKS)
        if not overwrite and {entry.name for entry in entries} <= {LOG_FILE}:
            return  # new messages go below those of a run that failed
        if not overwrite:
            raise UserError(f"another run has written into {folder} meanwhile: give another --out")
        for entry in entries:  # the marks last: what is broken off here can be gone on with
            _delete(entry)
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}): give another --out"
        ) from error


def remove_run(folder: Path, *, keep_log: bool) -> None:
    """Delete the folder of a run that failed, or all of it but its log."""
    if not keep_log:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for entry in folder.iterdir():
        if entry.name not in (LOG_FILE, LOCK):
            _delete(entry)


def _delete(entry: Path) -> None:
    """Delete a file, a link or a folder; links are not followed."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def remove_temporary_files(folder: Path) -> None:
    """Deletes what writes that were killed have left in the folder of a run."""
    for path in folder.rglob(".*"):
        if _target_name(path.name) != path.name:
            path.unlink()


def _check_same(folder: Path, config: TrainConfig) -> None:
    """Checks that a folder holds a run with these options, to go on with.

    Raises:
        UserError: if it holds something else.
    """
    own = folder / "config.yaml"
    if not own.is_file() and _names(folder) <= {LOG_FILE, own.name}:
        return  # broken off before anything was saved
    strange = _find_foreign_entry(folder)
    if strange is not None:
        raise UserError(
            f"--resume: --out {folder} holds something that is no run ({strange}): give the folder "
            "of the run to go on with"
        )
    there, asked = (dataclasses.asdict(one) for one in (TrainConfig.load(own), config))
    check_options(
        {name: value for name, value in there.items() if name not in RESULT_NEUTRAL_OPTIONS},
        {name: value for name, value in asked.items() if name not in RESULT_NEUTRAL_OPTIONS},
        f"--out {folder} holds a run",
    )


def check_options(existing: Mapping[str, Any], requested: Mapping[str, Any], what: str) -> None:
    """Checks that what is to be gone on with has the options that are asked for.

    Args:
        existing: the options that it has.
        requested: those asked for.
        what: the words for it.

    Raises:
        UserError: naming the options that differ.
    """
    said = [
        {name: "not given" if value is None else str(value) for name, value in options.items()}
        for options in (existing, requested)
    ]
    differences = [
        f"--{name.replace('_', '-')} was {was} and is {now}"
        for name in {**requested, **existing}
        if (was := said[0].get(name, "not given")) != (now := said[1].get(name, "not given"))
    ]
    if differences:
        raise UserError(
            f"{what} with other options: {'; '.join(differences)}. Give those of before, another "
            "folder, or --overwrite to replace it"
        )


def open_several(folder: Path, mark: str, config: TrainConfig) -> Any:
    """Check that a comparison or a search may be written into a folder, or resume there.

    Args:
        folder: where it is to be.
        mark: the file there with its options.
        config: the options that all its runs share.

    Returns:
        What is in that file if it is resumed, else None.

    Raises:
        UserError: if the folder is in use for something else, or the file is damaged.
    """
    check_output_location(folder, data=config.data)
    check_unlocked(folder)
    path = folder / mark
    if config.overwrite or not path.is_file():
        found = set(folder.iterdir()) - {folder / LOCK} if folder.is_dir() else None
        if found != set(find_temporary_files(folder)):
            check_folder(folder, config)
        return None
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        there = None
    if not isinstance(there, dict) or not isinstance(there.get("threads"), int | None):
        what = "search" if mark == SEARCH_FILE else "comparison"
        raise UserError(
            f"{path} does not hold the options of a {what} any more: give another --out"
        )
    return there


def begin_several(folder: Path, mark: str, options: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Make the folder of a comparison or a search, empty if it is to be overwritten.

    Args:
        folder: where it is to be.
        mark: the file there for its options.
        options: to be written into that file.
        overwrite: delete what is there.

    Returns:
        Whether it is a new one.
    """
    for path in find_temporary_files(folder):
        path.unlink()
    new = overwrite or not (folder / mark).is_file()
    if new:
        make_folder(folder, overwrite=overwrite)
    try:
        write_atomically(folder / mark, yaml.safe_dump(options, sort_keys=False))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it
        raise
    return new


def find_foreign_file(folder: Path) -> str | None:
    """What in the folder of a run, finished or not, belongs to none; None if nothing."""
    return min(_names(folder) - _RUN_FILES, default=None)


def find_temporary_files(folder: Path) -> list[Path]:
    """What writes of a comparison's or a search's own files left that were killed."""
    own = (_COMPARISON_FILES | _SEARCH_FILES) - {LOCK, TRIALS, *SEARCH_RUNS}
    return [path for path in folder.glob(".*") if _target_name(path.name) in own]


def _find_foreign_entry(folder: Path) -> str | None:
    """What in a folder belongs to no run, comparison or search of ours; None if nothing."""
    entries = _names(folder)
    if not entries:
        return None
    if COMPARISON_FILE in entries:
        return _find_foreign_in_comparison(folder)
    if SEARCH_FILE in entries:
        return _find_foreign_in_search(folder)
    try:
        TrainConfig.load(folder / "config.yaml")
    except UserError:
        return f"no {LOG_FILE} and config.yaml of one"
    return (
        find_foreign_file(folder)
        if LOG_FILE in entries
        else f"no {LOG_FILE} and config.yaml of one"
    )


def _find_foreign_in_comparison(folder: Path) -> str | None:
    """Likewise of a comparison: what is none of its files and none of its runs."""
    own = folder / COMPARISON_FILE
    if own.is_file() and not re.match(rb"data: .*\n(?: .*\n)*methods: ", own.read_bytes()):
        return COMPARISON_FILE
    for path in sorted(folder.iterdir()):
        several = path.is_dir() and re.fullmatch(r"\d+-per-class", path.name)
        for run in sorted(path.iterdir()) if several else [path]:
            if run.is_dir() and re.fullmatch(r".+-seed\d+", run.name):
                found = find_foreign_file(run)
                if found is not None:
                    return str(run.relative_to(folder) / found)
            elif _target_name(run.name) not in _COMPARISON_FILES:
                return str(run.relative_to(folder))
    return None


def _find_foreign_in_search(folder: Path) -> str | None:
    """Likewise of a search: what is none of its files, trials and whole runs."""
    own = folder / SEARCH_FILE
    if own.is_file() and not re.match(rb"data: .*\n(?:.*\n)*pruner: ", own.read_bytes()):
        return SEARCH_FILE
    beside = min(
        {_target_name(path.name) for path in folder.iterdir()} - _SEARCH_FILES, default=None
    )
    if beside is not None:
        return beside
    runs = [(folder / name, _RUN_FILES) for name in SEARCH_RUNS]
    runs += [(path, _TRIAL_FILES) for path in sorted((folder / TRIALS).glob("*"))]
    for run, known in runs:
        if run.is_dir() != run.exists() or (run.parent.name == TRIALS and not run.name.isdecimal()):
            return str(run.relative_to(folder))
        found = min(_names(run) - known, default=None) if run.is_dir() else None
        if found is not None:
            return str(run.relative_to(folder) / found)
    return None


def _names(folder: Path) -> set[str]:
    """What a folder holds beside its lock."""
    return {_target_name(path.name) for path in folder.iterdir()} - {LOCK}


def _target_name(name: str) -> str:
    """The name of the file that was to take a temporary one's place, if it is one (see `files`)."""
    found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", name)
    return name if found is None else found[1]
