"""What a run has cost, over all processes that have worked on it."""

import dataclasses
import json
import time
from pathlib import Path

from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.memory import PeakMemory

SPENT = "spent.json"  # there until the run is finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Of a run so far.

    Args:
        seconds: of all processes, of each until it last saved.
        memory: the most that one of them had in use, in MiB.
    """

    seconds: float = 0.0
    memory: float = 0.0


class Spent:
    """Measures what a process adds to the cost of a run.

    Args:
        folder: of the run.
        started: `time.perf_counter()` at the start of this process's part.
        memory: measures since then.
        resume: count what is written down there of the processes before.
    """

    def __init__(self, folder: Path, *, started: float, memory: PeakMemory, resume: bool) -> None:
        self._path = folder / SPENT
        self._started = started
        self._memory = memory
        self._before = _read(self._path) if resume else Cost()

    @property
    def cost(self) -> Cost:
        """Until now."""
        return Cost(
            seconds=round(self._before.seconds + time.perf_counter() - self._started, 1),
            memory=max(self._before.memory, self._memory.mib),
        )

    def save(self) -> None:
        """Writes it down, for a process that goes on from what was saved now."""
        write_atomically(self._path, json.dumps(dataclasses.asdict(self.cost)) + "\n")


def _read(path: Path) -> Cost:
    try:
        return Cost(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return Cost()  # no figure is worth a run that does not go on
