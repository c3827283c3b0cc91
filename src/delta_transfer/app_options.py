"""The options of app."""

import dataclasses

from delta_transfer.errors import UserError
from delta_transfer.options import Device, check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of app.

    Args:
        run: folder of a finished run on pictures.
        host: address to listen at. Any other than this machine's own lets others in, and nobody is
            asked for a password.
        port: to listen at; 0 for one that is free.
        max_mb: MiB that may be uploaded at once.
        examples: training pictures that the nearest ones are looked for among, at most; 0 for none,
            which starts faster.
        data_root: where the run's named data set lies; that of the run if not given. Nothing is
            downloaded.
        device: auto, cpu, cuda or mps.
    """

    run: str
    host: str = "127.0.0.1"
    port: int = 7860
    max_mb: int = 64
    examples: int = 2000
    data_root: str | None = None
    device: Device = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port must be from 0 (any that is free) to 65535, got {self.port}")
        check_least("--max-mb", self.max_mb, 1)
        check_least("--examples", self.examples, 0)
