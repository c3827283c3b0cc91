"""What the command push does: the folder, and if asked its commit."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

from delta_transfer.config.commands import PushOptions
from delta_transfer.export.export import (
    PREPROCESSING,
    check_folder,
    resolve_run_folder,
    write_folder_atomically,
)
from delta_transfer.export.hub.folder import FILES, write_folder
from delta_transfer.export.hub.upload import Uploaded, address, check_repo, check_token, upload
from delta_transfer.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pushed:
    """What became of a run.

    Args:
        files: that went to the hub, or would, and the bytes of each.
        address: of the repository.
        folder: of a dry run; None if it was uploaded.
        uploaded: the commit; None of a dry run.
    """

    files: Mapping[str, int]
    address: str
    folder: Path | None = None
    uploaded: Uploaded | None = None


def push(options: PushOptions) -> Pushed:
    """Writes the folder of a run for the hub and uploads it.

    Raises:
        UserError: if there is no finished run, the folder of a dry run is in use, or the hub is not
            reached or refuses.
    """
    check_repo(options.repo)
    if not options.dry_run:
        check_token()
    predictor = Predictor(resolve_run_folder(options.run), device="cpu")
    if options.dry_run:
        return _write(options, predictor)
    with tempfile.TemporaryDirectory(prefix="delta-transfer.") as temporary:
        folder = Path(temporary)
        files = _fill(options, predictor, folder)
        done = upload(folder, FILES, repo=options.repo, private=options.private)
    return Pushed(files=files, address=done.address, uploaded=done)


def _write(options: PushOptions, predictor: Predictor) -> Pushed:
    """What a dry run does."""
    folder = predictor.run / "hub" if options.out is None else Path(options.out)
    check_folder(
        folder,
        data=predictor.config.data,
        overwrite=options.overwrite,
        mark=PREPROCESSING,
        files=FILES,
    )
    with write_folder_atomically(folder) as new:
        files = _fill(options, predictor, new)
    return Pushed(files=files, address=address(options.repo), folder=folder)


def _fill(options: PushOptions, predictor: Predictor, folder: Path) -> Mapping[str, int]:
    return write_folder(
        predictor,
        folder,
        repo=options.repo,
        license=options.license,
        data_name=options.data_name,
    )
