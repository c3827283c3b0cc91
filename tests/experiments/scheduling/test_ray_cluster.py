"""A comparison over a Ray of two workers on this machine is that of one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from delta_transfer.config.train import TrainOptions
from delta_transfer.errors import UserError
from delta_transfer.experiments.comparison.compare import compare
from delta_transfer.experiments.scheduling.placement import Room
from delta_transfer.experiments.scheduling.ray_cluster import Node, missing, passed_on, usable
from tests.experiments.comparison.test_killed import figures
from tests.run_folders import flags, model_bytes, tiny

METHODS = "probe,l2"
LONG = {"strength": "auto", "epochs": 12, "checkpoint_steps": 1}


def command(images: Path, out: Path, *more: str) -> list[str]:
    options = ["--methods=" + METHODS, "--seeds=0,1", f"--out={out}", "--num-threads=1", *more]
    start = [sys.executable, "-m", "delta_transfer", "compare", str(images)]
    return [*start, *flags(**LONG), *options]


def whole(images: Path, out: Path) -> None:
    """The same in this process."""
    config = tiny(images, out, **LONG)
    compare(config, out, methods=METHODS.split(","), seeds=[0, 1], n_jobs=1, num_threads=1)


def same(first: Path, second: Path) -> None:
    assert figures(first) == figures(second)
    assert len(figures(first)) == 4
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
        and len(path.read_bytes().splitlines()) > 4
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


def cluster(*nodes: Node, memory: int = 0, device: Any = "cpu") -> Room:
    config = TrainOptions(data="images", device=device).resolve()
    return Room(config, usable(nodes, device, "auto"), memory=memory, on_ray=True)


NODES = (
    Node(id="head", cores=0, gpus=0, memory=8.0),
    Node(id="small", cores=4, gpus=0, memory=8.0),
    Node(id="large", cores=16, gpus=2, memory=30.0),
)


def test_threads_are_a_fair_share_that_every_node_has():
    assert cluster(*NODES).share(40) == 1
    assert cluster(*NODES).share(8) == 2  # of 20 cores
    assert cluster(*NODES).share(1) == 4
    assert cluster(*NODES, device="auto").share(40) == 8  # a GPU each


def test_as_many_runs_at_a_time_as_cores_memory_and_gpus_allow():
    assert cluster(*NODES).fitting(1) == 20
    assert cluster(*NODES).fitting(3) == 1 + 5
    assert cluster(*NODES, memory=7).fitting(3) == 1 + 4
    assert cluster(*NODES, device="cuda").fitting(3) == 2


@pytest.mark.parametrize(
    ("nodes", "device", "says"),
    [
        (NODES[:2], "cuda", "`device=cuda`: .* has no such device: use auto or cpu"),
        (NODES, "mps", "`device=mps`: .* has no such device: use auto or cpu"),
        (NODES[:1], "auto", "`ray=auto`: no node of the cluster has cores"),
    ],
)
def test_a_cluster_that_will_not_do_is_refused(nodes, device, says):
    with pytest.raises(UserError, match=says):
        cluster(*nodes, device=device)


def test_more_threads_than_any_node_has_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"`num_threads=17`: no node .* more than 16 cores"):
        cluster(*NODES).jobs(["l2"], tmp_path, workers=1, threads=17)


def test_nodes_are_given_the_settings_of_the_loggers_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "DELTA_TRANSFER_CACHE", "HOME"):
        monkeypatch.setitem(os.environ, name, "x")
    assert list(passed_on(["csv"])) == ["DELTA_TRANSFER_CACHE"]
    assert list(passed_on(["mlflow"])) == ["MLFLOW_TRACKING_URI", "DELTA_TRANSFER_CACHE"]


def test_files_that_a_node_does_not_see_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert missing(str(tmp_path), ["here"]) is None
    said = str(missing("/nowhere", ["here", "lost"]))
    assert said.startswith("lost does not exist on ")
    assert "in folders with the same path on all nodes" in said


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_killed_process_and_a_stop_change_nothing(images, tmp_path):
    out = tmp_path / "out"
    typed = command(images, out, "--ray=local", "--jobs=2")
    started = subprocess.Popen(
        typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: begun(out), started)
    for process in at_work(started.pid):
        process.kill()
    logs = "".join(path.read_text() for path in out.glob("*/train.log"))
    assert "resuming in epoch" not in logs

    def went_on() -> bool:
        texts = [path.read_text() for path in out.glob("*/train.log")]
        return any("resuming in epoch" in text for text in texts)

    wait_for(went_on, started)
    everything = [started.pid, *(p.pid for p in psutil.Process(started.pid).children(True))]
    assert len(everything) > 4
    os.kill(started.pid, signal.SIGINT)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 1
    assert "Traceback" not in said
    assert said.count("stopping the runs on the cluster after their step, and saving") == 1
    assert f"to resume, rerun the command with --out {out}" in said
    assert not any(part in said for part in ("ray::", "raylet", "Ray ", "(pid="))  # no chatter
    logs = "".join(path.read_text() for path in out.glob("*/train.log"))
    assert "stopped after step" in logs
    end = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in everything[1:]):
        assert time.monotonic() < end
        time.sleep(0.1)
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole(images, tmp_path / "whole")
    same(out, tmp_path / "whole")
