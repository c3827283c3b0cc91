"""The command, library versions and machine of a run."""

import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path

import psutil
import torch

LIBRARIES = ("delta-transfer", "torch", "torchvision", "timm", "lightning", "scikit-learn")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    found = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), **found}


def describe() -> tuple[str, ...]:
    """Return a log's header: the command, the versions and the machine, a line each."""
    cores = psutil.cpu_count(logical=True) or 1
    memory = psutil.virtual_memory().total / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.1f} GiB memory", *_accelerators()]
    return (
        f"command  {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        f"versions {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"machine  {platform.system()} {platform.release()}, {', '.join(parts)}",
    )


def _processor() -> str:
    """Return the name of the processor, as far as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _accelerators() -> list[str]:
    count = torch.cuda.device_count()
    return [torch.cuda.get_device_name(index) for index in range(count)]
