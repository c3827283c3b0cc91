"""Runs of two processes: results and files as of one process, and resuming after a kill."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.run_folders import flags
from tests.runs.test_resume import left_in, traces
from tests.several import environment, free_port, run

COMMAND = [sys.executable, "-m", "delta_transfer", "train"]


def read_numbers(file: Path, *, but: tuple[str, ...] = ()) -> list[list[float]]:
    with file.open(newline="") as rows:
        return [
            [float(text or "nan") for name, text in row.items() if name not in but]
            for row in csv.DictReader(rows)
        ]


def check_same_results(run: Path, other: Path) -> None:
    """Compare losses, image names, attention and weights."""
    for name, but in (("metrics.csv", ()), ("drift.csv", ("tap",))):
        found, wanted = (read_numbers(one / name, but=but) for one in (run, other))
        torch.testing.assert_close(
            torch.tensor(found), torch.tensor(wanted), rtol=1e-5, atol=1e-5, equal_nan=True
        )
    if (other / "attention.safetensors").exists():
        attention = [load_file(one / "attention.safetensors") for one in (run, other)]
        assert attention[0].keys() == attention[1].keys()
        for key, tensor in attention[0].items():
            expected = attention[1][key]
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    weights = [load_file(one / "model" / "model.safetensors") for one in (run, other)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][key], rtol=1e-3, atol=1e-5)


def test_two_processes_have_the_results_and_files_of_one(images, finished, tmp_path):
    out = tmp_path / "two"
    run("train_tiny", images, out, 3, module="tests.sharded_runs")
    check_same_results(out, finished.folder)
    assert left_in(out) == left_in(finished.folder)
    logs = [len(list((one / "tensorboard").iterdir())) for one in (out, finished.folder)]
    assert logs[0] == logs[1]


def start(
    images: Path, out: Path, *more: str, variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [*COMMAND, str(images), f"--out={out}", *flags(epochs=10, lr=1e-5), "--devices=2"]
    environment = {**os.environ, "DELTA_TRANSFER_CACHE": os.devnull, **(variables or {})}
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_epoch(out: Path, started: subprocess.Popen[str], epoch: int) -> None:
    end = time.monotonic() + 200
    metrics = out / "metrics.csv"
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2 * epoch:
        assert time.monotonic() < end
        assert started.poll() is None
        time.sleep(0.02)


def worker(started: subprocess.Popen[str], rank: int) -> psutil.Process:
    children = psutil.Process(started.pid).children()
    return next(one for one in children if one.environ().get("RANK") == str(rank))


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    started = start(images, out)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    return out


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_after_a_kill_all_processes_resume_to_the_same_bytes(images, tmp_path, undisturbed, rank):
    out = tmp_path / "killed"
    # It restarts late, when the other process could still use the old address.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "again = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0'\n"
        f"time.sleep(3 * (again and os.environ['RANK'] == '{rank}'))\n"
    )
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    started = start(images, out, "--checkpoint-steps=2", variables={"PYTHONPATH": path})
    wait_for_epoch(out, started, 3)
    worker(started, rank).send_signal(signal.SIGKILL)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert "resuming in epoch" in said
    assert "Traceback" not in said
    assert traces(out) == traces(undisturbed)
    assert left_in(out) == left_in(undisturbed)


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_processes_save_together_and_resume(images, tmp_path, undisturbed, number):
    out = tmp_path / "stopped"
    started = start(images, out, "--checkpoint-minutes=60")
    wait_for_epoch(out, started, 3)
    started.send_signal(number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "Traceback" not in said
    assert said.count("stopping after this step and saving; press Ctrl-C again") == 1
    assert said.count("to resume") == 1
    assert not (out / "result.json").exists()
    started = start(images, out, "--checkpoint-minutes=60", "--resume")
    _, said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    assert "resuming in epoch" in said
    assert traces(out) == traces(undisturbed)


@pytest.mark.slow
def test_termination_before_training_is_reported_once(images, tmp_path):
    started = start(images, tmp_path / "out")
    children: list[psutil.Process] = []
    while len(children) < 2:
        assert started.poll() is None
        children = psutil.Process(started.pid).children()
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 1
    assert said.count("terminated") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_slurm_processes_produce_the_same_bytes(images, tmp_path, undisturbed):
    out, port = tmp_path / "slurm", free_port()
    started = []
    for rank in range(2):
        variables = {
            "SLURM_NTASKS": "2",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_NNODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_NODELIST": "127.0.0.1",
            "SLURM_JOB_NAME": "delta",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "MASTER_PORT": str(port),
            "DELTA_TRANSFER_CACHE": os.devnull,
        }
        command = [*COMMAND, str(images), f"--out={out}", *flags(epochs=10, lr=1e-5)]
        started.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **variables},
            )
        )
    said = [one.communicate(timeout=200) for one in started]
    assert [one.returncode for one in started] == [0, 0], said
    assert f"report   {out / 'report.html'}" in said[0][0]
    assert said[1] == ("", "")
    assert traces(out) == traces(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--method=bss --strength=auto", "--method bss needs whole batches"),
        ("--batch-norm=train", "needs whole batches"),
        ("--lr=find", "does not support 2 processes"),
        ("--mixup=0.2", "--mixup 0.2 needs whole batches"),
        ("--batch-size=7", "--batch-size 7 must be a multiple of the 2 processes"),
        ("--overwrite", "--overwrite: several processes"),
        ("--attention-samples=1", "1 samples cannot be sharded over 2 processes"),
        ("--lr=1e9 --optimizer=sgd", "training diverged in epoch"),
    ],
)
def test_an_invalid_option_ends_all_processes_with_one_message(images, tmp_path, options, says):
    started = start(images, tmp_path / "out", *options.split())
    _, said = started.communicate(timeout=200)
    assert started.returncode == 2
    assert says in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_another_number_of_devices_than_torchruns_is_rejected(images, tmp_path):
    command = [*COMMAND, str(images), f"--out={tmp_path / 'out'}", *flags(devices=4)]
    variables = {**os.environ, **environment(0, 2, free_port())}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 2
    assert "--devices 4, but torchrun or SLURM has started 2" in done.stderr
