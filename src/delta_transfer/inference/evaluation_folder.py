"""The folder of an evaluation: its name, whether it may be written, and its being whole."""

import itertools
import json
import logging
import os
import tempfile
from pathlib import Path

from delta_transfer.errors import UserError
from delta_transfer.inference.evaluation import EVALUATION_FILE, Evaluation
from delta_transfer.inference.evaluation_per_target import PerTargetEvaluation
from delta_transfer.runs.folder import check_output_location

logger = logging.getLogger(__name__)


def default_folder(run: Path, data: str) -> Path:
    """RUN/evaluation/NAME, with a number behind it if other data of this name was evaluated.

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
    """Checks that an evaluation may be written into a folder.

    Args:
        folder: where it is to lie.
        data: what is evaluated, as the user named it.

    Raises:
        UserError: if the folder lies among the images, cannot be written, or holds something
            that is no evaluation.
    """
    check_output_location(folder, data=data)
    if _in_use(folder) and _evaluated_data(folder) is None:
        raise UserError(
            f"--out {folder} is not empty and holds no evaluation (no {EVALUATION_FILE} of one), "
            "which is "
            "all that is replaced: give another folder"
        )


def save_evaluation(
    evaluation: Evaluation | PerTargetEvaluation, *, run: Path, out: str | None
) -> Path | None:
    """Writes an evaluation into a folder that was chosen, or into one in the folder of its run.

    Args:
        evaluation: what to write.
        run: the folder of the run.
        out: the folder that was chosen; None for `default_folder`.

    Returns:
        The folder; None if it lies in the run and cannot be written, of which a warning tells.

    Raises:
        UserError: if the folder that was chosen cannot be written.
    """
    folder = run / "evaluation" if out is None else Path(out)
    try:
        folder = default_folder(run, evaluation.data) if out is None else folder
        write_evaluation(evaluation, folder)
    except OSError as error:
        if out is not None:
            raise UserError(
                f"--out {folder} cannot be written ({error.strerror}): give another folder"
            ) from error
        logger.warning(
            "no files are written: %s cannot be (%s); --out names another folder",
            folder,
            error.strerror,
        )
        return None
    return folder


def write_evaluation(evaluation: Evaluation | PerTargetEvaluation, folder: Path) -> None:
    """Writes an evaluation, in the place of an older one if there is one; whole or not at all.

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
    """What the evaluation in a folder is of; None if there is none."""
    try:
        values = json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(values, dict) and {"data", "left_out"} <= set(values)
    return str(values["data"]) if ours else None
