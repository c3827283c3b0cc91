"""A comparison over a Ray of two workers on this machine is that of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from delta_transfer import compare_ray as module
from delta_transfer.compare import compare
from delta_transfer.compare_ray import Cluster, Node, missing
from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError
from tests.runs import flags, model_bytes, tiny
from tests.test_compare_killed import figures

METHODS = "probe,l2,l2sp"


def command(pictures: Path, out: Path, *more: str) -> list[str]:
    options = ["--methods=" + METHODS, "--seeds=0,1", f"--out={out}", "--threads=1", *more]
    start = [sys.executable, "-m", "delta_transfer.cli", "compare", str(pictures)]
    return [*start, *flags(method="l2", epochs=15, checkpoint_steps=1)[1:], *options]


def whole(pictures: Path, out: Path) -> None:
    """The same in this process."""
    config = tiny(pictures, out, method="l2", epochs=15, checkpoint_steps=1)
    compare(config, out, methods=METHODS.split(","), seeds=[0, 1], jobs=1, threads=1)


def same(first: Path, second: Path) -> None:
    assert figures(first) == figures(second)
    assert len(figures(first)) == 6
    for run in sorted(path.parent for path in second.glob("*/result.json")):
        assert model_bytes(first / run.name) == model_bytes(run)
    names = [
        {str(p.relative_to(f)) for p in f.glob("*/*") if p.name != "tensorboard"}
        | {p.name for p in f.iterdir()}
        for f in (first, second)
    ]
    assert names[0] == names[1]


def wait_for(condition: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)


def begun(out: Path) -> bool:
    """Whether a run has trained a while and has some way to go."""
    return any(
        path.is_file()
        and len(path.read_bytes().splitlines()) >= 6
        and (not (path.parent / "result.json").exists())
        for path in out.glob("l2*/metrics.csv")
    )


def at_work(pid: int) -> list[psutil.Process]:
    """The processes that make runs."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if process.cmdline()[:1] == ["ray::work"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_killed_process_and_a_stop_change_nothing(pictures, tmp_path):
    out = tmp_path / "out"
    typed = command(pictures, out, "--ray=local", "--jobs=2")
    started = subprocess.Popen(
        typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: begun(out), started)
    for process in at_work(started.pid):
        process.kill()
    logs = "".join(path.read_text() for path in out.glob("*/train.log"))
    assert "going on in epoch" not in logs

    def went_on() -> bool:
        texts = [path.read_text() for path in out.glob("*/train.log")]
        return any("going on in epoch" in text for text in texts)

    wait_for(went_on, started)
    everything = [started.pid, *(p.pid for p in psutil.Process(started.pid).children(True))]
    assert len(everything) > 4
    wait_for(lambda: begun(out), started)
    os.kill(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 1
    assert "Traceback" not in said
    assert said.count("stopping the runs on the cluster after their step, and saving") == 1
    assert f"the same command with --out {out} goes on with them" in said.splitlines()[-1]
    assert "ray" not in said.replace("--ray", "").lower()
    logs = "".join(path.read_text() for path in out.glob("*/train.log"))
    assert "stopped after step" in logs
    end = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in everything[1:]):
        assert time.monotonic() < end
        time.sleep(0.1)
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole(pictures, tmp_path / "whole")
    same(out, tmp_path / "whole")
