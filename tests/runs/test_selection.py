import csv
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delta_transfer import train
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import pool_train_and_val
from delta_transfer.errors import UserError
from delta_transfer.features.probe import fit_probe
from delta_transfer.metrics.calibration import temperature_scaled_nll
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs import selection as module
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.selection import REFIT_THRESHOLD, should_refit
from tests.run_folders import CLASSES, tiny


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def flat(images: Path, out: Path, **options: Any) -> TrainConfig:
    """24 images without splits; a quarter is held out for the test."""
    return tiny(images / "train", out, test_split="0.25", val_fraction=0.25, **options)


@pytest.fixture(scope="module")
def refitted(images, tmp_path_factory) -> RunResult:
    out = tmp_path_factory.mktemp("refitted") / "run"
    return train(flat(images, out, method="delta", lr=1e-3))


@pytest.fixture(scope="module")
def never(images, tmp_path_factory) -> RunResult:
    out = tmp_path_factory.mktemp("never") / "run"
    return train(flat(images, out, method="delta", lr=1e-3, refit="never"))


@pytest.fixture(scope="module")
def folded(images, tmp_path_factory) -> tuple[RunResult, list[Any]]:
    """A run with three folds, and what was fine-tuned for it: folder and network of each."""
    out, tuned = tmp_path_factory.mktemp("folded") / "run", []

    def remember(plan: Any, folder: Path, **options: Any) -> Any:
        found = original(plan, folder, **options)
        tuned.append((folder.relative_to(out).as_posix(), plan.setup, found, options))
        return found

    original = module.fine_tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fine_tune", remember)
        result = train(flat(images, out, method="delta", folds=3, lr=1e-3))
    return result, tuned


class TestWhether:
    @pytest.mark.parametrize(
        ("options", "drawn", "count", "expected"),
        [
            ({}, True, REFIT_THRESHOLD - 1, True),
            ({}, True, REFIT_THRESHOLD, False),
            ({}, False, 10, False),
            ({"refit": "always"}, True, REFIT_THRESHOLD, True),
            ({"refit": "always"}, False, 10, False),
            ({"refit": "never"}, True, 10, False),
            ({"folds": 2}, True, REFIT_THRESHOLD, True),
            ({"samples_per_class": 3}, True, 10, False),  # or there would be more of a class
            ({"preset": "paper"}, True, 10, False),
            ({"preset": "paper", "refit": "always"}, True, 10, True),
        ],
    )
    def test_small_sets_whose_validation_split_was_drawn(self, options, drawn, count, expected):
        task = load_data("sklearn/digits", seed=0)
        task = dataclasses.replace(
            task,
            train=task.train.subset(range(count - 4)),
            val=task.val.subset(range(4)),
            val_drawn=drawn,
        )
        assert should_refit(TrainOptions(data="x", **options).resolve(), task) is expected


class TestRefit:
    def test_the_final_model_learns_from_training_and_validation_images(self, refitted, never):
        assert (refitted.refitted, never.refitted) == (True, False)
        assert (refitted.num_train_samples, never.num_train_samples) == (18, 12)
        models = [
            (run.folder / "model" / "model.safetensors").read_bytes() for run in (refitted, never)
        ]
        assert models[0] != models[1]
        log = (refitted.folder / "train.log").read_text()
        if refitted.best_epoch:
            assert "on all 18 training and validation images" in log

    def test_the_epoch_and_the_validation_figures_are_those_of_before(self, refitted, never):
        for name in ("best_epoch", "val_accuracy", "linear_probe_val_accuracy", "epochs"):
            assert getattr(refitted, name) == getattr(never, name)
        for name in ("metrics.csv", "drift.csv"):
            assert (refitted.folder / name).read_text() == (never.folder / name).read_text()

    def test_the_probe_beside_it_learns_from_the_same_images(self, refitted, never, images):
        config = flat(images, refitted.folder)
        prepared = prepare(config)
        parts = [prepared.features[name] for name in ("train", "val")]
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        probe = fit_probe(features, labels, num_outputs=3, seed=0)
        views, expected = prepared.features["test"]
        right = (probe(views[:, 0]).argmax(dim=1) == expected).double().mean().item()
        assert refitted.linear_probe_test_accuracy == right
        assert never.linear_probe_test_accuracy == prepared.probe_scores["test"]

    def test_without_a_test_split_predictions_are_of_images_not_learnt_from(self, images, tmp_path):
        found = []
        for refit in ("auto", "never"):
            config = tiny(images / "train", tmp_path / refit, refit=refit, lr=1e-3, method="l2")
            assert train(config).refitted is (refit == "auto")
            found.append((tmp_path / refit / "predictions.csv").read_text())
        assert found[0] == found[1]

    def test_a_split_that_the_data_brings_is_never_learnt_from(self, images, tmp_path, caplog):
        result = train(tiny(images, tmp_path / "run", refit="always", method="probe"))
        assert (result.refitted, result.num_train_samples) == (False, 24)
        assert "`refit=always` is ignored" in caplog.text


class TestFolds:
    def test_every_image_is_held_out_once_and_never_learnt_from_then(self, folded):
        _, tuned = folded
        folds = [prepared.task for name, prepared, _, _ in tuned if name.startswith("folds/")]
        assert [name for name, *_ in tuned] == ["folds/1", "folds/2", "folds/3", "refit"]
        held_out = [path for task in folds for path in task.val.paths]
        assert len(held_out) == len(set(held_out)) == 18
        for task in folds:
            assert not set(task.train.paths) & set(task.val.paths)
            assert sorted([*task.train.paths, *task.val.paths]) == sorted(held_out)
            assert sorted(task.val.labels) == [0, 0, 1, 1, 2, 2]

    def test_the_epoch_has_the_lowest_loss_over_all_images_held_out(self, folded):
        result, tuned = folded
        fits = [found.fit_result.val_outputs for name, _, found, _ in tuned if name != "refit"]
        losses, right = [], []
        for epoch in range(len(fits[0])):
            logits = torch.cat([fit[epoch][0] for fit in fits])
            labels = torch.cat([fit[epoch][1] for fit in fits])
            losses.append(float(temperature_scaled_nll(logits, labels)))
            right.append((logits.argmax(dim=1) == labels).double().mean().item())
        assert result.best_epoch == int(np.argmin(losses))
        assert result.val_accuracy == pytest.approx(right[result.best_epoch])

    def test_the_final_model_learns_from_all_for_so_many_epochs(self, folded):
        result, tuned = folded
        name, prepared, _, options = tuned[-1]
        assert (name, options["stop_after"]) == ("refit", result.best_epoch)
        assert len(prepared.task.train) == result.num_train_samples == 18
        assert result.refitted

    @pytest.mark.parametrize(("name", "keys"), [("metrics.csv", 1), ("drift.csv", 2)])
    def test_the_curves_are_the_mean_of_the_folds(self, folded, name, keys):
        result, _ = folded
        mean = rows(result.folder / name)
        each = [rows(result.folder / "folds" / str(fold) / name) for fold in (1, 2, 3)]
        assert len(mean) == len(each[0])
        compared = 0
        for row, *others in zip(mean, *each, strict=True):
            for column, text in row.items():
                values = [other[column] for other in others]
                assert bool(text) == all(values)
                if text:
                    expected = np.mean([float(v) for v in values]) if column != "tap" else None
                    compared += expected is not None
                    assert (
                        text == values[0]
                        if expected is None
                        else float(text) == pytest.approx(expected)
                    )
        assert compared > 8

    def test_folds_without_a_figure_do_not_count(self, tmp_path):
        for name, figures in (("a", "0.5,nan"), ("b", "nan,nan"), ("c", "0.25,nan")):
            (tmp_path / name).write_text(f"epoch,val_roc_auc,other\n3,{figures}\n")
        mean = module._average(sorted(tmp_path.iterdir()), ["epoch"])
        assert mean == "epoch,val_roc_auc,other\n3,0.375,\n"

    def test_the_attention_is_that_of_the_final_model(self, folded):
        result, _ = folded
        if result.best_epoch:
            assert (result.folder / "attention.safetensors").is_file()
            assert not list((result.folder / "refit").glob("*.safetensors"))

    def test_a_probe_has_folds_too(self, images, tmp_path):
        result = train(flat(images, tmp_path / "run", method="probe", folds=3))
        assert result.val_accuracy == result.linear_probe_val_accuracy
        assert result.test_accuracy == result.linear_probe_test_accuracy
        assert (result.num_train_samples, result.best_epoch) == (18, 0)

    @pytest.mark.parametrize(
        ("own", "folds", "message"),
        [(True, 3, "has its own validation split"), (False, 7, "the largest class has only 6")],
    )
    def test_what_cannot_be_is_said(self, images, tmp_path, own, folds, message):
        config = tiny(images, tmp_path / "run", folds=folds)
        if not own:
            config = flat(images, tmp_path / "run", folds=folds)
        with pytest.raises(UserError, match=message):
            train(config)
        assert not (tmp_path / "run").exists()

    def test_images_that_cannot_be_read_count_for_nothing(self, images, tmp_path):
        data = shutil.copytree(images / "train", tmp_path / "data")
        for name in CLASSES:
            (data / name / "0.png").write_text("no image")
        with pytest.raises(UserError, match="the largest class has only 7 images"):
            train(tiny(data, tmp_path / "run", folds=8))

    def test_the_folds_checkpoints_are_kept_until_the_refit_is_over(
        self, images, tmp_path, monkeypatch, folded
    ):
        assert not list(folded[0].folder.glob("folds/*/checkpoints"))

        def fail(*arguments: Any, stop_after: int | None = None, **options: Any) -> Any:
            if stop_after is not None:
                raise UserError("training diverged")
            return original(*arguments, **options)

        original = module.fine_tune
        monkeypatch.setattr(module, "fine_tune", fail)
        config = flat(images, tmp_path / "run", method="l2", folds=2, epochs=1)
        with pytest.raises(UserError, match="training diverged"):
            train(config)
        assert len(list(tmp_path.glob("run/folds/*/checkpoints/best.ckpt"))) == 2

    def test_the_seed_draws_folds_of_groups_too(self, images):
        task = load_data(str(images / "train"), seed=0)
        sizes = {name: 1 + number % 3 for number, name in enumerate("abcdefghijkl")}
        paths = tuple(f"{name}{i}" for name, size in sizes.items() for i in range(size))
        split = dataclasses.replace(task.train, paths=paths, labels=(0,) * len(paths))
        none = dataclasses.replace(split, paths=(), labels=())
        task = dataclasses.replace(task, train=split, val=none, group=lambda path: path[0])
        found = [module._folds(task, 3, seed=seed) for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]
        for folds in found:
            assert sorted(i for _, val in folds for i in val) == list(range(len(paths)))
            assert [len(val) for _, val in folds] == [8, 8, 8]
            for kept, val in folds:
                assert not {paths[i][0] for i in kept} & {paths[i][0] for i in val}

    def test_without_any_validation_loss_the_initial_weights_are_kept(self, caplog):
        assert module._lowest([math.nan, 2.0, 1.0]) == 2
        assert not caplog.records
        assert module._lowest([math.nan, math.nan]) == 0
        assert "the validation loss is NaN in all epochs" in caplog.text

    def test_a_class_with_fewer_images_than_folds_is_no_warning(self, images):
        task = load_data(str(images / "train"), seed=0)
        labels = pool_train_and_val(task).labels
        few = [i for i, label in enumerate(labels) if label or i < 2]
        assert len(CLASSES) == 3
        task = dataclasses.replace(
            task,
            train=pool_train_and_val(task).subset(few[:-3]),
            val=pool_train_and_val(task).subset(few[-3:]),
        )
        folds = module._folds(task, 4, seed=0)
        assert sorted(i for _, val in folds for i in val) == list(range(len(few)))
