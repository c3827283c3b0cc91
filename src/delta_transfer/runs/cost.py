"""Wall time and peak memory of a run, over all processes that worked on it."""

import dataclasses
import json
import time
from pathlib import Path

from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.memory import PeakMemory

USAGE_FILE = "usage.json"  # deleted when the run is finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceUsage:
    """Resource usage of a run so far.

    Args:
        wall_time_s: sum over all processes, of each until its last checkpoint.
        peak_memory_mib: highest use of memory in any of them, in MiB.
    """

    wall_time_s: float = 0.0
    peak_memory_mib: float = 0.0


class ResourceTracker:
    """Measures the resource usage of a run in this process and, if resumed, before it.

    Args:
        folder: folder of the run.
        started: `time.perf_counter()` at the start of this process's part.
        memory: measures since then.
        resume: add the usage that earlier processes saved in the folder.
    """

    def __init__(self, folder: Path, *, started: float, memory: PeakMemory, resume: bool) -> None:
        self._path = folder / USAGE_FILE
        self._started = started
        self._memory = memory
        self._before = _read(self._path) if resume else ResourceUsage()

    @property
    def usage(self) -> ResourceUsage:
        """The usage until now."""
        return ResourceUsage(
            wall_time_s=round(self._before.wall_time_s + time.perf_counter() - self._started, 1),
            peak_memory_mib=max(self._before.peak_memory_mib, self._memory.mib),
        )

    def save(self) -> None:
        """Save the usage, for a process that resumes from the current checkpoint."""
        write_atomically(self._path, json.dumps(dataclasses.asdict(self.usage)) + "\n")


def _read(path: Path) -> ResourceUsage:
    try:
        return ResourceUsage(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return ResourceUsage()  # losing the usage must not stop a resume
