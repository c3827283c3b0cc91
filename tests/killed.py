"""Makes a comparison or a run whose process is killed again and again, each time a little later.

    python -m tests.killed compare DATA OUT MOMENT ...
    python -m tests.killed train DATA OUT MOMENT ...
    python -m tests.killed "average none" DATA OUT MOMENT ...

A moment is that before a change in OUT, in words with spaces between that all occur in it: open (to
write), os.mkdir, os.rename, os.remove or os.rmdir, and the path. Writes the exit code of each
process; the last one is left alone.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from delta_transfer import train
from delta_transfer.backbones.base import InputSpec
from delta_transfer.experiments.comparison.compare import compare
from delta_transfer.runs import selection
from tests.networks import conv_net
from tests.run_folders import tiny

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
SPEC = InputSpec(
    size=32, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(moment: str, out: Path) -> None:
    """Kills this process, unless it ends before."""

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and not Path(str(args[0])).exists():
            return  # nothing will change
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (writes or event in CHANGES) and str(out) in str(args[0]):
            change = f"{event} {args[0]}"
            if all(word in change for word in moment.split()):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)


def make(kind: str, data: Path, out: Path, **options: Any) -> int:
    """What is made; returns how much of it failed."""
    if kind == "compare":
        config = tiny(data, out, epochs=1, strength="auto")
        methods = ["probe", "delta"]
        return len(compare(config, out, methods=methods, seeds=[0], n_jobs=1).failures)
    splits = {"test_split": "0.25", "val_fraction": 0.25, "folds": 2}
    options |= {"strength": "auto"} if kind == "train" else {"average": "none", "method": "l2"}
    config = tiny(data / "train", out, lr=1e-4, checkpoint_steps=1, **splits, **options)
    # Folds with a tiny network, which is faster than its checkpoints. What all have a share in is
    # chosen, so that all are trained to the end.
    with mock.patch.object(selection, "choose_mixture", lambda losses, **_: next(iter(losses))):
        train(config, network=conv_net(), spec=SPEC)
    return 0


def kill_again_and_again(kind: str, data: Path, out: Path, moments: Sequence[str]) -> None:
    """Runs this file in a process of its own.

    Raises:
        AssertionError: if one of its processes was not killed, or the last one failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", kind, data, out, *moments],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    codes = [int(code) for code in done.stdout.split()]
    assert codes == [-signal.SIGKILL] * len(moments) + [0], done.stderr


def main(kind: str, data: Path, out: Path, moments: list[str]) -> None:
    for moment in [*moments, None]:
        # A copy of this process, in which nothing has been computed yet: imports are slow.
        child = os.fork()
        if not child:
            if moment is not None:
                kill_at(moment, out)
            resume = {} if kind == "compare" else {"resume": True}
            os._exit(make(kind, data, out, **resume))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()  # before the next copy is made


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
