"""A comparison that is killed or interrupted gives the same table in the end."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from delta_transfer.experiments.comparison.compare import compare
from tests.killed import kill_again_and_again
from tests.run_folders import flags, tiny

LONG = 10  # epochs

# Before the folder is made, its options are there, a run has its result, and its report; while one
# is trained, and before that has its result.
MOMENTS = (
    "os.mkdir killed",
    "os.rename .compare.yaml",
    "os.rename probe-seed0/.result.json",
    "open probe-seed0/.report.html",
    "os.rename delta-seed0/checkpoints",
    "os.rename delta-seed0/strength-0.1/checkpoints",
    "os.rename delta-seed0/.result.json",
)


def figures(folder: Path) -> list[dict[str, str]]:
    """The table without times and memory."""
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if k not in ("wall_time_s", "peak_memory_mib")}
        for row in rows
    ]


@pytest.mark.slow
def test_killed_at_any_moment_it_gives_the_same_table(images, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_again_and_again("compare", images, killed, MOMENTS)
    config = tiny(images, whole, epochs=1, strength="auto")
    compare(config, whole, methods=["probe", "delta"], seeds=[0], n_jobs=1)
    assert figures(killed) == figures(whole)
    assert len(figures(whole)) == 2
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    for run in ("probe-seed0", "delta-seed0"):
        of_killed, of_whole = ({p.name for p in (f / run).iterdir()} for f in (killed, whole))
        assert of_killed == of_whole
        weights = [(f / run / "model" / "model.safetensors").read_bytes() for f in (killed, whole)]
        assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_command_and_it_goes_on(images, tmp_path, stop):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "delta_transfer", "compare", str(images)]
    command += [
        *flags(epochs=LONG, strength="auto"),
        "--checkpoint-minutes=60",
        "--methods=probe,l2",
        "--seeds=0,1",
        f"--out={out}",
        "--jobs=2",
    ]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: any(epochs(run) > 4 for run in out.glob("l2*")))
    workers = children(started.pid)
    assert len(workers) >= 2
    if stop == signal.SIGINT:  # as a terminal does, to all of them
        os.killpg(started.pid, stop)
    else:
        os.kill(started.pid, stop)
    _, said = started.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert "Traceback" not in said
    if stop == signal.SIGINT:
        assert started.returncode == 1
        assert f"to resume, rerun the command with --out {out}" in said
        assert said.count("stopping the runs after their step, and saving") == 1
        assert (out / "report.html").is_file()
        assert "stopped after step" in logs(out)
    assert "resuming in epoch" not in logs(out)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert ("resuming in epoch" in logs(out)) == (stop == signal.SIGINT)
    whole = tmp_path / "whole"
    config = tiny(images, whole, epochs=LONG, strength="auto")
    compare(config, whole, methods=["probe", "l2"], seeds=[0, 1], n_jobs=1)
    assert figures(out) == figures(whole)


def epochs(run: Path) -> int:
    """Lines of figures that a run which is not finished has."""
    file = run / "metrics.csv"
    over = (run / "result.json").exists() or not file.is_file()
    return 0 if over else len(file.read_text().splitlines())


def logs(out: Path) -> str:
    return "".join(path.read_text() for path in out.glob("*/train.log"))


def wait_for(condition: object, *, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
