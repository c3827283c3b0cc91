"""The command push."""

import logging
from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    PushOptions,
)

_log = logging.getLogger("delta_transfer")


def push(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("push", PushOptions, args, positional=["run", "repo"])
    if not options.dry_run and (options.out is not None or options.overwrite):
        name = "--overwrite" if options.out is None else "--out"
        _log.warning("%s is ignored without --dry-run: no folder is written", name)
    from delta_transfer.export.hub import push as pushing

    found = pushing.push(options)
    if found.uploaded is None:
        print(f"folder   {found.folder}")
        print(f"for      {found.address} (not uploaded)")
    else:
        print(f"address  {found.address}{' (private)' if found.uploaded.private else ''}")
        print(f"commit   {found.uploaded.commit}")
    for name, size in found.files.items():
        print(f"{size / 1024:9,.1f} KiB  {name}")
    if found.folder is not None:
        print(f"upload this folder, changed or not: hf upload {options.repo} {found.folder}")
