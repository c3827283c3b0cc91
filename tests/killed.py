"""Makes a comparison whose process is killed again and again, each time a little later.

    python -m tests.killed DATA OUT MOMENT ...

A moment is that before a change in OUT, in words with spaces between that all occur in it: open (to
write), os.mkdir, os.rename, os.remove or os.rmdir, and the path. Writes the exit code of each
process; the last one is left alone.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from delta_transfer.compare import compare
from tests.runs import tiny

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR


def kill_at(moment: str, out: Path) -> None:
    """Kills this process, unless it ends before."""

    def listen(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (writes or event in CHANGES) and str(out) in str(args[0]):
            change = f"{event} {args[0]}"
            if all(word in change for word in moment.split()):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)


def main(data: Path, out: Path, moments: list[str]) -> None:
    for moment in [*moments, None]:
        # A copy of this process, in which nothing has been computed yet: imports are slow.
        child = os.fork()
        if not child:
            if moment is not None:
                kill_at(moment, out)
            config = tiny(data, out, epochs=1, strength="auto")
            done = compare(config, out, methods=["probe", "delta_no_attention"], seeds=[0], jobs=1)
            os._exit(len(done.failures))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()  # before the next copy is made


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
