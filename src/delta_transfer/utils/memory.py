"""Peak memory."""

import contextlib
import re
import sys
from pathlib import Path

import torch

MIB = 2**20


class PeakMemory:
    """Peak memory since this object was created.

    On CUDA it is the memory of tensors on the GPU. Elsewhere it is the resident memory of this
    process, Python and libraries included, data loader workers not. Linux can reset the peak; on
    other systems it is the peak since the process started.

    Args:
        device: the device to measure.

    Example:
        >>> PeakMemory(torch.device("cpu")).mib > 10
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # not Linux, or without permission
                Path("/proc/self/clear_refs").write_text("5")

    @property
    def mib(self) -> float:
        """The peak until now, in MiB, rounded to a tenth; 0 where it is not known (Windows)."""
        if self._device.type == "cuda":
            return round(torch.cuda.max_memory_allocated() / MIB, 1)
        return round(_resident_peak() / MIB, 1)


def _resident_peak() -> int:
    """Return the peak resident memory of this process in bytes."""
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
