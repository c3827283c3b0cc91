"""The command export."""

import logging
from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    ExportOptions,
)

_log = logging.getLogger("delta_transfer")


def export(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("export", ExportOptions, args, positional=["run"])
    from delta_transfer.export.export import export_run, resolve_run_folder
    from delta_transfer.inference.predictor import Predictor

    predictor = Predictor(resolve_run_folder(options.run), device="cpu")
    found = export_run(
        predictor, format=options.format, out=options.out, overwrite=options.overwrite
    )
    if predictor.config.paper_protocol:
        _log.info("the test of this run averages ten crops; the exported model uses one crop")
    print(f"file        {found.file}")
    if found.opset is not None:
        print(f"opset       {found.opset}")
    print(f"size        {found.size_bytes / 2**20:.1f} MiB")
    print(f"difference  at most {found.max_difference:.1e} in the logits, on {found.checked_on}")
