"""The options of push."""

import dataclasses
import re

from delta_transfer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Options of push.

    Args:
        run: folder of a finished run.
        repo: where it goes on the Hugging Face Hub, ORG/NAME, the first of which may be your own
            name there; it is made if it is not there, and gets one commit if it is.
        dry_run: write the folder and upload nothing; needs no token.
        out: folder of a dry run; RUN/hub if not given.
        overwrite: replace what an older dry run has left in that folder.
        license: of the model, by its name on the hub, for example apache-2.0 or cc-by-4.0; none is
            stated if not given.
        private: make a repository that only you, or the organisation, can see.
        data_name: what the data is called in the model card; the name of the data set, or of the
            folder or file without those that it lies in, if not given.
    """

    run: str
    repo: str
    dry_run: bool = False
    out: str | None = None
    overwrite: bool = False
    license: str | None = None
    private: bool = False
    data_name: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license):
            raise UserError(
                f"--license {self.license!r} is no name of a licence on the hub: these have small "
                "letters, digits, dots and hyphens; give one such as apache-2.0, mit or cc-by-4.0"
            )
        if self.data_name is not None and not self.data_name.strip():
            raise UserError("--data-name is empty: give a name, or leave the option out")
