"""The command push: write the folder of a run for the hub, and upload it if asked."""

import dataclasses
import functools
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
from delta_transfer.export.hub.upload import UploadResult, address, check_repo, check_token, upload
from delta_transfer.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushResult:
    """The result of a push, or of its dry run."""

    files: Mapping[str, int]  # their sizes in bytes, by name
    address: str  # of the repository
    folder: Path | None = None  # of a dry run
    uploaded: UploadResult | None = None  # None for a dry run


def push(options: PushOptions) -> PushResult:
    """Write the folder of a run for the hub, and upload it unless it is a dry run.

    Raises:
        UserError: if there is no finished run, the folder of a dry run is in use, or the hub cannot
            be reached or refuses.
    """
    check_repo(options.repo)
    if not options.dry_run:
        check_token()
    predictor = Predictor(resolve_run_folder(options.run), device="cpu")
    write = functools.partial(
        write_folder,
        predictor,
        repo=options.repo,
        license=options.license,
        data_name=options.data_name,
    )
    where = address(options.repo)
    if not options.dry_run:
        with tempfile.TemporaryDirectory(prefix="delta-transfer.") as temporary:
            files = write(Path(temporary))
            done = upload(Path(temporary), FILES, repo=options.repo, private=options.private)
        return PushResult(files=files, address=where, uploaded=done)
    folder = predictor.run / "hub" if options.out is None else Path(options.out)
    data, overwrite = predictor.config.data, options.overwrite
    check_folder(folder, data=data, overwrite=overwrite, mark=PREPROCESSING, files=FILES)
    with write_folder_atomically(folder) as new:
        files = write(new)
    return PushResult(files=files, address=where, folder=folder)
