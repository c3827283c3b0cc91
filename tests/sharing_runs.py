"""What `test_distributed` runs in two processes: whole runs on tiny pictures."""

import sys
from pathlib import Path

from delta_transfer import train
from delta_transfer.errors import UserError
from tests.runs import tiny


def run(data: str, out: str, *options: str) -> None:
    """Trains by options `name=value`; an error that is the user's is printed."""
    given = dict(option.split("=") for option in options)
    numbers = {
        name: float(text) if "." in text else int(text)
        for name, text in given.items()
        if text[0].isdigit()
    }
    try:
        train(tiny(Path(data), Path(out), **{**given, **numbers}))
    except UserError as error:
        sys.stdout.write(f"{error}\n")
