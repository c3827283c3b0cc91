"""The command train."""

import logging
import sys
from collections.abc import Sequence

from delta_transfer.cli import launcher
from delta_transfer.cli.arguments import parse_command

_log = logging.getLogger("delta_transfer")


def train(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    from delta_transfer.config.train import TrainOptions

    exclusive = ["epochs", "steps"]
    options = parse_command(
        "train", TrainOptions, args, positional=["data"], config_file=True, exclusive=exclusive
    )
    config = options.resolve()
    from delta_transfer.runs import run, validation
    from delta_transfer.runs.folder import default_folder

    count = 1 if launcher.is_externally_launched() else validation.count_processes(config)
    if count > 1:
        out = [] if config.out else [f"--out={default_folder(config)}"]
        code = launcher.launch(["train", *args, *out], processes=count)
        if code:
            sys.exit(code)  # one of the processes has printed the reason
        return
    result = run.train(config)
    if launcher.is_output_process():
        for what, name in (
            ("model", "model"),
            ("report", "report.html"),
            ("metrics", "metrics.csv"),
            ("checkpoints", "checkpoints"),
        ):
            if (result.folder / name).exists():  # without training the last two do not exist
                print(f"{what:<8} {result.folder / name}")
