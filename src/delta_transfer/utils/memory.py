"""The most memory that was in use over some time."""

import contextlib
import re
import sys
from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """Measures from the moment that it is made.

    On CUDA it is what tensors take up on the GPU. Elsewhere it is the resident memory of this
    process: with Python, the libraries and all that was there before, without the processes that
    load images. Linux forgets the peaks of before; other systems give that since the process
    began.

    Args:
        device: what is computed on.

    Example:
        >>> PeakMemory(torch.device("cpu")).mib > 10
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # no Linux, or one that does not allow it
                Path("/proc/self/clear_refs").write_text("5")

    @property
    def mib(self) -> float:
        """The peak until now, in MiB, to a tenth; 0 where the system does not say (Windows)."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated() / MIB, 1)
        return round(_resident_peak() / MIB, 1)


def _resident_peak() -> int:
    """Bytes."""
    if sys.platform == "linux":
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
