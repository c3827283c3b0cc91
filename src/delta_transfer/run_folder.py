"""The folder of a run: its name, whether it may be written, and its log."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError


def default_folder(config: TrainConfig) -> Path:
    """runs/DATA-METHOD-TIME."""
    data = Path(config.data).resolve().name if Path(config.data).exists() else config.data
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{data.replace('/', '-')}-{config.method}-{stamp}"


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises UserError if the folder is in use, or holds something that is no run of ours."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"--out {folder} is not empty: give another folder, or --overwrite to replace the run"
        )
    if not _is_ours(folder):
        raise UserError(
            f"--out {folder} holds something that is no run (it has no config.yaml of one), which "
            "--overwrite does not delete: give another folder"
        )


def make_folder(folder: Path) -> None:
    """An empty folder, in the place of an old run.

    Raises:
        UserError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}): give another --out"
        ) from error


def _is_ours(folder: Path) -> bool:
    """Whether it is a run, finished or not, or a comparison."""
    try:
        TrainConfig.load(folder / "config.yaml")
    except UserError:
        results = folder / "results.csv"
        return results.is_file() and results.read_bytes().startswith(b"method,seed,")
    return True


@contextlib.contextmanager
def log_to(path: Path, header: Sequence[str]) -> Iterator[None]:
    """Inside, what the package logs goes to a file too, below some lines that came before."""
    path.write_text("".join(f"{line}\n" for line in header), encoding="utf-8")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("delta_transfer")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()
