"""Folders of runs, comparisons and searches: names, checks before writing, and cleaning."""

import contextlib
import dataclasses
import itertools
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import yaml

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError, EnvironmentError, UserError
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import LOCK, check_unlocked
from delta_transfer.utils.paths import user_path

LOG_FILE = "train.log"
_LOG_START = b"command  "  # see `utils.environment.describe`; the logs of other programs differ
COMPARISON_FILE = "compare.yaml"  # options of a comparison
SEARCH_FILE = "search.yaml"  # options of a search
TRIALS = "trials"  # its trials, in folders named by number
SEARCH_RUNS = ("default", "best")  # its complete runs

_RUN_FILES = frozenset(
    f"""{LOG_FILE} config.yaml lr.csv metrics.csv hparams.yaml tensorboard drift.csv
    attention.safetensors checkpoints final folds usage.json predictions.csv examples.csv
    molecules.csv examples corruptions.csv model result.json report.html evaluation export hub
    wandb""".split()
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
_AFTER_TRAINING = ("examples", "model")  # folders that an interrupted run may have half filled
# Options that do not change results, except for rounding on another device.
RESULT_NEUTRAL_OPTIONS = (
    *("out", "overwrite", "resume", "device", "devices", "num_nodes", "strategy"),
    *("num_workers", "image_cache_gb"),
    *("checkpoint_minutes", "checkpoint_steps", "loggers"),
)
_MARKS = (COMPARISON_FILE, SEARCH_FILE, LOG_FILE, "config.yaml")  # files that identify a folder


def default_folder(config: TrainConfig) -> Path:
    """Return runs/DATA-METHOD-TIME, with a number appended if it exists."""
    return free_folder(f"{data_name(config.data)}-{config.method}-{time_stamp()}")


def free_folder(name: str) -> Path:
    """Return a new folder in `runs` of that name, with a number appended if it exists."""
    return next(folder for folder in _numbered(Path("runs") / name) if not folder.exists())


def data_name(data: str) -> str:
    """Return the name of a dataset for names of files and folders."""
    path = user_path(data.removeprefix("hf/"))
    name = path.resolve().name.removesuffix(".csv") if path.exists() else data
    return name.replace("/", "-")


def time_stamp() -> str:
    """Return date and time for names."""
    return time.strftime("%Y%m%d-%H%M%S")


def _numbered(first: Path) -> Iterator[Path]:
    yield first
    for number in itertools.count(2):
        yield first.with_name(f"{first.name}-{number}")


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Check that a run may be written to a folder.

    Args:
        folder: folder of the run.
        config: options of the run, with `overwrite` and `resume`.

    Raises:
        UserError: if the folder is in use, is in the data folder, or contains files that do not
            belong to a run or that the new run reads.
    """
    data = config.data
    _check_outside(folder, config)
    check_unlocked(folder)
    if not folder.is_dir() or not _names(folder) or _has_only_log(folder):
        return
    if config.resume:
        _check_same(folder, config)
        return
    if not config.overwrite:
        raise ConfigError(
            f"`out={folder}` is not empty: use another folder, `overwrite` to replace the run, or "
            "`resume` (of train) to resume it"
        )
    foreign = _find_foreign_entry(folder)
    if foreign is not None:
        raise ConfigError(
            f"`out={folder}` contains files that do not belong to a run ({foreign}), which "
            "`overwrite` does not delete: use another folder"
        )
    read_by_run = (data, config.weights, config.attention, config.data_root, config.model)
    for read in (*read_by_run, config.shifted):
        path = Path((read or "").removeprefix("local-dir:").removeprefix("hf/"))
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"`out={folder}` contains {path}, which the run reads and `overwrite` would "
                "delete: use another folder"
            )


def _check_outside(folder: Path, config: TrainConfig) -> None:
    """Check that a folder may be created, and is in none of the folders of images."""
    for data in (config.data, config.shifted):
        if data is not None:
            check_output_location(folder, data=data)


def check_output_location(folder: Path, *, data: str) -> None:
    """Check that a folder may be created.

    Args:
        folder: the folder.
        data: the data folder, which it must not be in.

    Raises:
        UserError: if it is in the data folder, is a file, or cannot be written.
    """
    if Path(data).is_dir() and folder.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(
            f"`out={folder}` is in the data folder {data}, where it would count as a class: use a "
            "folder outside of it"
        )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"`out={folder}` is a file: use a folder")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise EnvironmentError(
            f"`out={folder}` cannot be written, because of {parent}: use another `out`"
        )


def make_folder(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Create the folder of a run, or empty it.

    Args:
        folder: the folder.
        overwrite: delete its contents.
        resume: keep its contents, except for temporary files.

    Raises:
        UserError: if it cannot be created, or has been filled since it was checked.
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
        if not overwrite and (not entries or _has_only_log(folder)):
            return  # the new run appends to the log of a failed one
        if not overwrite:
            raise ConfigError(f"another run has written to {folder} meanwhile: use another `out`")
        for entry in entries:  # the marks last, so that an interrupted deletion can be repeated
            _delete(entry)
    except OSError as error:
        raise EnvironmentError(
            f"the folder {folder} cannot be written ({error.strerror}): use another `out`"
        ) from error


def remove_run(folder: Path, *, keep_log: bool) -> None:
    """Delete the folder of a run that failed, or all of it but its log, as far as possible."""
    if not keep_log:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):  # which would hide why the run failed
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
    """Delete the temporary files of interrupted writes in the folder of a run."""
    for path in folder.rglob(".*"):
        if _target_name(path.name) != path.name:
            path.unlink()


def _check_same(folder: Path, config: TrainConfig) -> None:
    """Check that a folder contains a run with these options, to be resumed.

    Raises:
        UserError: if it contains something else.
    """
    own = folder / "config.yaml"
    if (
        not own.is_file()
        and _names(folder) <= {LOG_FILE, own.name}
        and _is_own_log(folder / LOG_FILE)
    ):
        return  # interrupted before anything was saved
    foreign = _find_foreign_entry(folder)
    if foreign is not None:
        raise ConfigError(
            f"`resume`: `out={folder}` contains files that do not belong to a run ({foreign}): use "
            "the folder of the run to resume"
        )
    existing, requested = (dataclasses.asdict(one) for one in (TrainConfig.load(own), config))
    check_options(
        {name: value for name, value in existing.items() if name not in RESULT_NEUTRAL_OPTIONS},
        {name: value for name, value in requested.items() if name not in RESULT_NEUTRAL_OPTIONS},
        f"`out={folder}` contains a run",
    )


def check_options(existing: Mapping[str, Any], requested: Mapping[str, Any], what: str) -> None:
    """Check that a run, comparison or search to resume has the requested options.

    Args:
        existing: its options.
        requested: the requested ones.
        what: description of it in the message.

    Raises:
        ConfigError: naming the options that differ.
    """
    texts = [
        {name: "not given" if value is None else str(value) for name, value in options.items()}
        for options in (existing, requested)
    ]
    differences = [
        f"`{name}` was {was} and is {now}"
        for name in {**requested, **existing}
        if (was := texts[0].get(name, "not given")) != (now := texts[1].get(name, "not given"))
    ]
    if differences:
        raise ConfigError(
            f"{what} with other options: {'; '.join(differences)}. Use the same options, another "
            "folder, or `overwrite` to replace it"
        )


def open_several(folder: Path, mark: str, config: TrainConfig) -> Any:
    """Check that a comparison or a search may be written into a folder, or resume there.

    Args:
        folder: where it is to be.
        mark: the file there with its options.
        config: the options that all its runs share.

    Returns:
        The content of that file if it is resumed, else None.

    Raises:
        UserError: if the folder is in use for something else, or the file is damaged.
    """
    _check_outside(folder, config)
    check_unlocked(folder)
    path = folder / mark
    if config.overwrite or not path.is_file():
        found = set(folder.iterdir()) - {folder / LOCK} if folder.is_dir() else None
        if found != set(find_temporary_files(folder)):
            check_folder(folder, config)
        return None
    try:
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # ValueError: no text, or an impossible date
        there = None
    if not isinstance(there, dict) or not isinstance(there.get("num_threads"), int | None):
        what = "search" if mark == SEARCH_FILE else "comparison"
        raise ConfigError(
            f"{path} does not hold the options of a {what} any more: use another `out`"
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
        True if it is a new one.
    """
    for path in find_temporary_files(folder):
        path.unlink()
    new = overwrite or not (folder / mark).is_file()
    if new:
        make_folder(folder, overwrite=overwrite)
        (folder / LOG_FILE).unlink(missing_ok=True)  # of a failed run, no part of the new one
    try:
        write_atomically(folder / mark, yaml.safe_dump(options, sort_keys=False))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if there is nothing in it
        raise
    return new


def find_foreign_file(folder: Path) -> str | None:
    """Return a file in the folder of a run that does not belong to it; None without any."""
    return min(_unknown(folder, _RUN_FILES), default=None)


def find_temporary_files(folder: Path) -> list[Path]:
    """Return the temporary files of interrupted writes of a comparison or a search."""
    own = (_COMPARISON_FILES | _SEARCH_FILES) - {LOCK, TRIALS, *SEARCH_RUNS}
    return [path for path in folder.glob(".*") if _target_name(path.name) in own]


def _find_foreign_entry(folder: Path) -> str | None:
    """Return an entry that belongs to no run, comparison or search; None without any."""
    entries = _names(folder)
    if not entries:
        return None
    if entries == {LOG_FILE}:
        return None if _is_own_log(folder / LOG_FILE) else LOG_FILE
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
    """Return an entry that belongs to neither a comparison nor its runs; None without any."""
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
    """Return an entry that belongs to no search, trial or run of it; None without any."""
    own = folder / SEARCH_FILE
    if own.is_file() and not re.match(rb"data: .*\n(?:.*\n)*pruner: ", own.read_bytes()):
        return SEARCH_FILE
    other = min(
        {_target_name(path.name) for path in folder.iterdir()} - _SEARCH_FILES, default=None
    )
    if other is not None:
        return other
    runs = [(folder / name, _RUN_FILES) for name in SEARCH_RUNS]
    runs += [(path, _TRIAL_FILES) for path in sorted((folder / TRIALS).glob("*"))]
    for run, known in runs:
        if run.is_dir() != run.exists() or (run.parent.name == TRIALS and not run.name.isdecimal()):
            return str(run.relative_to(folder))
        found = min(_unknown(run, known), default=None) if run.is_dir() else None
        if found is not None:
            return str(run.relative_to(folder) / found)
    return None


def _has_only_log(folder: Path) -> bool:
    """Return True if a folder contains the log of a run that failed and nothing else."""
    return _names(folder) == {LOG_FILE} and _is_own_log(folder / LOG_FILE)


def _is_own_log(path: Path) -> bool:
    """Return True for the log of a run, or an empty one, of a run that was killed early."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_LOG_START)) in (b"", _LOG_START)


def _unknown(folder: Path, known: Set[str]) -> set[str]:
    """Return the names of entries that are neither known nor folders of candidate runs."""
    return {name for name in _names(folder) - known if not re.match(r"strength-\d", name)}


def _names(folder: Path) -> set[str]:
    """Return the names of a folder's entries without its lock."""
    return {_target_name(path.name) for path in folder.iterdir()} - {LOCK}


def _target_name(name: str) -> str:
    """Return the final name of a temporary file (see `utils.files`), or the name itself."""
    found = re.fullmatch(r"\.(.+)\.[a-z0-9_]{8}", name)
    return name if found is None else found[1]
