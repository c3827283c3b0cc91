import importlib.metadata
import re
import sys
from pathlib import Path

import psutil
import torch

from delta_transfer.utils.environment import describe, versions


def test_versions_are_those_that_are_installed():
    found = versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert re.fullmatch(r"3\.\d+\.\d+.*", found["python"])


def test_the_command_is_quoted_for_a_shell(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/delta-transfer", "train", "my images", "--seed=1"])
    command, told, machine = describe()
    assert command == "command  delta-transfer train 'my images' --seed=1"
    assert told.startswith("versions python 3.")
    assert f"timm {importlib.metadata.version('timm')}" in told
    assert f"{psutil.cpu_count()} cores, " in machine
    assert re.search(r", \d+\.\d GiB memory", machine)


def test_processor_and_gpus_are_named(monkeypatch):
    lines = "processor\t: 0\nmodel name\t: Fast CPU 9\nprocessor\t: 1\nmodel name\t: Fast CPU 9\n"
    read = Path.read_text
    told = {Path("/proc/cpuinfo"): lines}
    monkeypatch.setattr(
        Path, "read_text", lambda p, *args, **kw: told.get(p) or read(p, *args, **kw)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert ", Fast CPU 9, " in describe()[2]
    assert describe()[2].endswith(" GiB memory, GPU 0, GPU 1")
