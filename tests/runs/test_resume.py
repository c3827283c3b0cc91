"""A run that was killed or stopped goes on to what it would have been."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from delta_transfer import train
from delta_transfer.cli import main as cli
from delta_transfer.cli.launcher import OUTCOME
from delta_transfer.cli.main import main
from delta_transfer.metrics.run_result import RunResult
from tests.killed import kill_again_and_again, make
from tests.run_folders import flags, tiny

MOMENTS = (
    "os.rename .config.yaml",
    "os.rename folds/1/checkpoints/.next.ckpt",  # nothing is saved yet
    "os.rename folds/1/checkpoints/next.ckpt",  # the first state is whole, but not in its place
    "os.rename folds/1/checkpoints/last.ckpt",  # so is the second
    "os.rename folds/1/strength-0.1/checkpoints/last.ckpt",
    "os.rename folds/2/checkpoints/last.ckpt",
    "os.rename folds/2/strength-0.1/checkpoints/last.ckpt",
    "os.rename killed/.metrics.csv",
    "os.rename final/checkpoints/last.ckpt",
    "os.rename final/strength-0.1/checkpoints/last.ckpt",
    "open predictions.csv",
    "os.mkdir model",
    "os.rename .result.json",
    "os.rmdir folds",
    "os.rename .report.html",
)
TRAINED_ON_ALL = (
    "os.rename folds/2/checkpoints/last.ckpt",
    "os.rename final/checkpoints/next.ckpt",
    "os.rename final/checkpoints/last.ckpt",
    "os.mkdir model",
    "os.rmdir folds",
)


def traces(folder: Path) -> dict[str, bytes]:
    """All that must be the same, by its name."""
    names = ["predictions.csv", "model/model.safetensors", "model/config.json", "examples.csv"]
    found = {name: (folder / name).read_bytes() for name in names}
    for name in ("metrics.csv", "drift.csv"):
        found |= {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob(f"**/{name}")}
    return found


def figures(folder: Path) -> RunResult:
    result = RunResult.load(folder)
    none = {"wall_time_s": 0.0, "peak_memory_mib": 0.0, "folder": Path()}
    return dataclasses.replace(result, **none)


def left_in(folder: Path) -> set[str]:
    """The files that are there, but for those of which each process makes one."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if "tensorboard/" not in name}


@pytest.mark.parametrize(
    ("kind", "moments"),
    [
        ("train", (MOMENTS[3], MOMENTS[8], "os.mkdir model")),
        pytest.param("train", MOMENTS, marks=pytest.mark.slow),
        pytest.param("average none", TRAINED_ON_ALL, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(images, tmp_path, kind, moments):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_again_and_again(kind, images, killed, moments)
    make(kind, images, whole)
    assert traces(killed) == traces(whole)
    assert figures(killed) == figures(whole)
    assert left_in(killed) == left_in(whole)


def test_a_finished_run_is_left_alone(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}
    config = finished.folder / "config.yaml"
    assert main(["train", "-c", str(config), "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")} == before
    said = capsys.readouterr()
    assert f"{finished.folder} is finished: nothing to resume" in said.err
    assert f"report   {finished.folder / 'report.html'}" in said.out


def test_with_nothing_there_it_begins(finished, images, tmp_path):
    out = tmp_path / "new"
    command = ["train", str(images), f"--out={out}", *flags(epochs=3, method="delta_attention")]
    assert main([*command, "--resume"]) == 0
    for name in ("model/model.safetensors", "predictions.csv", "metrics.csv"):
        assert (out / name).read_bytes() == (finished.folder / name).read_bytes()


@pytest.mark.parametrize("change", ["image", "weights"])
def test_of_other_images_or_weights_it_starts_anew(images, tmp_path, caplog, change):
    data = shutil.copytree(images, tmp_path / "data")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 8, stride=8),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )

    class Broken(Exception):
        pass

    def broken(*args: object, **options: object) -> None:
        raise Broken

    options = {"method": "lp_ft", "resume": True}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("delta_transfer.runs.run._finalize", broken)
        for _ in range(2):  # the second time it goes on
            with pytest.raises(Broken):
                train(tiny(data, tmp_path / "run", **options), network=network)
    assert "from scratch" not in caplog.text
    if change == "image":
        next((data / "train").glob("*/*.png")).unlink()
    else:
        torch.nn.init.zeros_(network[0].bias)
    again = train(tiny(data, tmp_path / "run", **options), network=network)
    assert "have changed: training from scratch" in caplog.text
    whole = train(tiny(data, tmp_path / "whole", **options), network=network)
    for name in ("predictions.csv", "metrics.csv", "drift.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def command_of(images: Path, out: Path) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "delta_transfer",
        "train",
        str(images),
        f"--out={out}",
    ]
    return [*command, *flags(epochs=40, lr=1e-5, num_workers=2), "--checkpoint-minutes=60"]


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_says_how_to_go_on_and_does(images, tmp_path, number):
    out = tmp_path / "out"
    command = command_of(images, out)
    started = subprocess.Popen(  # with processes that load images, which are signalled too
        command, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 200
    while not (out / "metrics.csv").is_file():  # it trains
        assert time.monotonic() < end
        assert started.poll() is None
        time.sleep(0.05)
    os.killpg(started.pid, number)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "Traceback" not in said
    assert said.count("stopping after this step and saving; press Ctrl-C again") == 1
    assert "stopped after step" in said.splitlines()[-1]
    assert f"; to resume, rerun the command with --out {out} --resume" in said.splitlines()[-1]
    assert not (out / "result.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resuming in epoch" in done.stderr
    whole = tmp_path / "whole"
    assert main(command_of(images, whole)[3:]) == 0
    assert traces(out) == traces(whole)


def test_sigterm_where_nothing_trains_ends_the_command_as_ctrl_c_does(capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_run", lambda args: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["methods"]) == 1
    assert capsys.readouterr().err == "terminated\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_of_several_that_the_launcher_ends_says_nothing_final(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(OUTCOME, str(tmp_path / "outcome"))
    monkeypatch.setattr(cli, "_run", lambda args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="1"):
        main(["methods"])
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "outcome").exists()
