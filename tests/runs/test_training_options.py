"""Options of the loss and of watching, through whole runs."""

import csv
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from delta_transfer.cli.main import main
from delta_transfer.runs.folder import RESULT_NEUTRAL_OPTIONS
from delta_transfer.runs.run import train
from delta_transfer.training.module import FineTuneModule
from tests.run_folders import flags, model_bytes, tiny


@pytest.fixture(scope="module")
def uneven(images, tmp_path_factory) -> Path:
    """With two training images of the first class, and eight of each other."""
    data = shutil.copytree(images, tmp_path_factory.mktemp("data") / "uneven")
    for number in range(2, 8):
        (data / "train" / "checks" / f"{number}.png").unlink()
    return data


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_with_all_of_them_goes_on_to_the_same_bytes(uneven, tmp_path, capsys, monkeypatch):
    options = flags(method="lp_ft", epochs=3)
    command = ["train", str(uneven), *options, "--class-weights=auto", "--label-smoothing=0.1"]
    command += ["--loggers=csv"]
    assert main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    said = capsys.readouterr()
    whole = tmp_path / "whole"
    epochs = [int(float(row["epoch"])) for row in rows(whole) if row["val_loss"]]
    assert epochs == [0, 1, 2, 3]
    assert "4.0 times as many images as the smallest: weighted in the loss" in said.err
    places = [f"{line.split()[1]}" for line in said.out.splitlines()]
    names = ("model", "report.html", "metrics.csv", "checkpoints")
    assert places == [str(whole / name) for name in names]
    assert not (whole / "tensorboard").exists()
    log = (whole / "train.log").read_text().splitlines()
    assert [line.split()[0] for line in log[:3]] == ["command", "versions", "machine"]

    stop = 5
    step = FineTuneModule.training_step

    def broken(self, batch, index):
        if self.global_step == stop:
            raise RuntimeError("broken off")
        return step(self, batch, index)

    again = [*command, f"--out={tmp_path / 'again'}", "--checkpoint-steps=1"]
    with monkeypatch.context() as patched:
        patched.setattr(FineTuneModule, "training_step", broken)
        with pytest.raises(RuntimeError, match="broken off"):
            main(again)
    assert main([*again, "--resume"]) == 0
    assert model_bytes(tmp_path / "again") == model_bytes(whole)
    assert (tmp_path / "again/metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_the_sampler_shows_each_class_equally_often(uneven, tmp_path, monkeypatch):
    shown: list[tuple[int, ...]] = []
    sure, right = 9 * torch.eye(3), torch.arange(3)
    expected = F.cross_entropy(sure, right, label_smoothing=0.3)
    step = FineTuneModule.training_step

    def watched(self, batch, index):
        shown.append(tuple(batch[1].tolist()))
        assert self.loss(sure, right) == expected
        return step(self, batch, index)

    monkeypatch.setattr(FineTuneModule, "training_step", watched)
    options = {"class_weights": "sampler", "label_smoothing": 0.3}
    train(tiny(uneven, tmp_path / "run", method="lp_ft", epochs=1, **options))
    assert Counter(sum(shown, ())) == {0: 6, 1: 6, 2: 6}


def test_where_figures_go_may_change_when_a_run_goes_on(finished):
    assert "loggers" in RESULT_NEUTRAL_OPTIONS
    options = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert options["loggers"] == "csv,tensorboard"
    assert options["class_weights"] == "none"
