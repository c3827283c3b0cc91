"""The output folder of an evaluation: its name, permission to write, and atomic writing."""

import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

from delta_transfer.errors import ConfigError, EnvironmentError
from delta_transfer.inference.evaluation import EVALUATION_FILE, Evaluation
from delta_transfer.inference.evaluation_per_target import PerTargetEvaluation
from delta_transfer.runs.folder import check_output_location

logger = logging.getLogger(__name__)


def default_folder(run: Path, data: str) -> Path:
    """Return RUN/evaluation/NAME, numbered if other data of the same name was evaluated.

    Args:
        run: the folder of the run.
        data: as in `Evaluation`.
    """
    path = Path(data)
    name = data.replace("/", "-")
    if path.is_absolute():
        name = (path.stem if path.is_file() else path.name) or "data"
    folders = (
        run / "evaluation" / (f"{name}-{number}" if number > 1 else name)
        for number in itertools.count(1)
    )
    return next(f for f in folders if not _in_use(f) or _evaluated_data(f) == data)


def check_folder(folder: Path, *, data: str) -> None:
    """Check that an evaluation may be written to a folder.

    Args:
        folder: to write to.
        data: what is evaluated, as the user named it.

    Raises:
        UserError: if the folder is inside the data, not writable, or contains anything other than
            an evaluation.
    """
    check_output_location(folder, data=data)
    if _in_use(folder) and _evaluated_data(folder) is None:
        raise ConfigError(
            f"`out={folder}` is not empty and has no {EVALUATION_FILE}; only an evaluation can be "
            "replaced: use another folder"
        )


def save_evaluation(
    evaluation: Evaluation | PerTargetEvaluation, *, run: Path, out: str | None
) -> Path | None:
    """Write an evaluation to a folder, by default one in the folder of its run.

    Args:
        evaluation: what to write.
        run: the folder of the run.
        out: the folder to write to; None for `default_folder`.

    Returns:
        The folder; None, with a warning, if `out` is None and the run's folder is not writable.

    Raises:
        EnvironmentError: if `out` is not writable.
    """
    folder = run / "evaluation" if out is None else Path(out)
    try:
        folder = default_folder(run, evaluation.data) if out is None else folder
        write_evaluation(evaluation, folder)
    except OSError as error:
        if out is not None:
            raise EnvironmentError(
                f"`out={folder}` cannot be written ({error.strerror}): use another folder"
            ) from error
        logger.warning(
            "no files are written: %s is not writable (%s); choose a folder with `out`",
            folder,
            error.strerror,
        )
        return None
    return folder


def write_evaluation(evaluation: Evaluation | PerTargetEvaluation, folder: Path) -> None:
    """Write an evaluation atomically, replacing an older one.

    Raises:
        OSError: if it cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        evaluation.save(Path(temporary))
        folder.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            os.replace(file, folder / file.name)


def _in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _evaluated_data(folder: Path) -> str | None:
    """Return the data of the evaluation in a folder; None if there is no evaluation."""
    try:
        values = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(values, dict) and {"data", "num_unreadable"} <= set(values)
    return str(values["data"]) if ours else None
