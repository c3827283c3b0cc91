"""What a run has cost, over all processes that have worked on it."""

import dataclasses
import json
import time
from pathlib import Path

from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.memory import PeakMemory

USAGE_FILE = "usage.json"  # there until the run is finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceUsage:
    """Of a run so far.

    Args:
        wall_time_s: of all processes, of each until it last saved.
        peak_memory_mib: the most that one of them had in use, in MiB.
    """

    wall_time_s: float = 0.0
    peak_memory_mib: float = 0.0


class ResourceTracker:
    """Measures what a process adds to the cost of a run.

    Args:
        folder: of the run.
        started: `time.perf_counter()` at the start of this process's part.
        memory: measures since then.
        resume: count what is written down there of the processes before.
    """

    def __init__(self, folder: Path, *, started: float, memory: PeakMemory, resume: bool) -> None:
        self._path = folder / USAGE_FILE
        self._started = started
        self._memory = memory
        self._before = _read(self._path) if resume else ResourceUsage()

    @property
    def usage(self) -> ResourceUsage:
        """Until now."""
        return ResourceUsage(
            wall_time_s=round(self._before.wall_time_s + time.perf_counter() - self._started, 1),
            peak_memory_mib=max(self._before.peak_memory_mib, self._memory.mib),
        )

    def save(self) -> None:
        """Writes it down, for a process that goes on from what was saved now."""
        write_atomically(self._path, json.dumps(dataclasses.asdict(self.usage)) + "\n")


def _read(path: Path) -> ResourceUsage:
    try:
        return ResourceUsage(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return ResourceUsage()  # no figure is worth a run that does not go on
