"""Seconds add up over the processes of a run, and memory is the most of any."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delta_transfer import train
from delta_transfer.runs.cost import USAGE_FILE, ResourceTracker, ResourceUsage
from tests.run_folders import tiny


def spent(
    folder: Path, *, mib: float, seconds: float = 0.0, resume: bool = True
) -> ResourceTracker:
    memory: Any = SimpleNamespace(mib=mib)
    started = time.perf_counter() - seconds
    return ResourceTracker(folder, started=started, memory=memory, resume=resume)


def test_a_process_adds_to_what_was_written_down(tmp_path):
    spent(tmp_path, mib=300, seconds=5000).save()
    spent(tmp_path, mib=200, seconds=700)  # killed before it had saved
    second = spent(tmp_path, mib=100, seconds=2000)
    assert second.usage.wall_time_s == pytest.approx(7000, abs=300)
    assert second.usage.peak_memory_mib == 300
    second.save()
    assert spent(tmp_path, mib=400).usage.peak_memory_mib == 400
    assert spent(tmp_path, mib=400).usage.wall_time_s == pytest.approx(7000, abs=300)
    assert spent(tmp_path, mib=1, resume=False).usage.wall_time_s == pytest.approx(0, abs=300)


@pytest.mark.parametrize("text", ["", "[]", '{"hours": 1}'])
def test_what_cannot_be_read_counts_nothing(tmp_path, text):
    (tmp_path / USAGE_FILE).write_text(text)
    assert spent(tmp_path, mib=5).usage.peak_memory_mib == 5


def test_a_run_that_goes_on_counts_what_was_before(images, tmp_path, monkeypatch):
    class Broken(Exception):
        pass

    def broken(*args: object, **options: object) -> None:
        raise Broken

    config = tiny(images, tmp_path / "run", method="lp_ft", epochs=1, resume=True)
    with monkeypatch.context() as patched:
        patched.setattr("delta_transfer.runs.run._finalize", broken)
        with pytest.raises(Broken):
            train(config)
    file = tmp_path / "run" / USAGE_FILE
    cost = ResourceUsage(**json.loads(file.read_text()))
    assert cost.wall_time_s > 0
    assert cost.peak_memory_mib > 10
    file.write_text('{"wall_time_s": 5000.0, "peak_memory_mib": 1e6}')
    result = train(config)
    assert result.wall_time_s > 5000
    assert result.peak_memory_mib == 1e6
    assert not file.exists()
