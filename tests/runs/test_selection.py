"""The final network of a run: averages over folds and candidates, one training, or the start."""

import csv
import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from delta_transfer import train as train_options
from delta_transfer.backbones.base import InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.methods.registry import METHODS, find_method
from delta_transfer.metrics.calibration import temperature_scaled_nll
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs import fine_tune
from delta_transfer.runs import selection as module
from delta_transfer.runs.folder import find_foreign_file
from delta_transfer.runs.model_soup import Mixture, format_percent, mixtures
from delta_transfer.runs.plan import FineTunePlan, make_plan
from delta_transfer.runs.preparation import prepare as preparation
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.training.loaders import Dataloaders
from tests.networks import conv_net
from tests.run_folders import CLASSES, tiny

SPEC = InputSpec(
    size=32, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)
METHOD = "delta"
STRONG, WEAK = METHODS[METHOD].candidates
Trained = list[tuple[str, FineTunePlan, fine_tune.FineTuneResult]]


def train(config: TrainConfig) -> RunResult:
    """With a network that takes no time."""
    return train_options(config, network=conv_net(), spec=SPEC)


def prepare(config: TrainConfig) -> RunSetup:
    return preparation.prepare(config, network=conv_net(), spec=SPEC)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def flat(images: Path, out: Path, **options: Any) -> TrainConfig:
    """24 images without splits; a quarter is held out for the test."""
    return tiny(images / "train", out, test_split="0.25", val_fraction=0.25, **options)


def model(run: RunResult) -> dict[str, Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


def checkpoint(folder: Path) -> dict[str, Tensor]:
    """The weights after the last step."""
    path = folder / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    prefix = "network."
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def initial(setup: RunSetup) -> dict[str, Tensor]:
    """The pretrained network with the linear probe of the training split as its head."""
    head = setup.backbone.head
    probe = {f"{head}.weight": setup.probe.weight, f"{head}.bias": setup.probe.bias}
    return {**setup.backbone.module.state_dict(), **probe}


def assert_mixed(found: Mapping[str, Tensor], states: list[Mapping[str, Tensor]], mixture: Mixture):
    """Independently of `average_states`: the mean over equally many states of each kind."""
    each = len(states) // len(mixture)
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            continue
        expected = torch.zeros_like(tensor, dtype=torch.float64)
        for number, state in enumerate(states):
            expected += mixture[number % len(mixture)] / each * state[name].double()
        torch.testing.assert_close(tensor, expected.float())


def choosing(number: int) -> Callable[[Mapping[Mixture, Tensor]], Mixture]:
    """Instead of `choose_mixture`: one of those to choose from, by its number."""
    return lambda losses, **options: list(losses)[number]


def remembering(trained: Trained, out: Path) -> Callable[..., fine_tune.FineTuneResult]:
    """Instead of `fine_tune`: what it makes is kept, with its folder."""
    original = module.fine_tune

    def remember(plan: FineTunePlan, folder: Path, **options: Any) -> fine_tune.FineTuneResult:
        found = original(plan, folder, **options)
        trained.append((folder.relative_to(out).as_posix(), plan, found))
        return found

    return remember


@pytest.fixture(scope="module")
def folded(images, tmp_path_factory) -> tuple[RunResult, Trained]:
    """A run with three folds and two candidates, and what was trained for it, by folder.

    The second mixture is chosen, in which all have a share.
    """
    out, trained = tmp_path_factory.mktemp("folded") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fine_tune", remembering(trained, out))
        patch.setattr(module, "choose_mixture", choosing(1))
        result = train(flat(images, out, method=METHOD, strength="auto"))
    return result, trained


@pytest.fixture(scope="module")
def once(images, tmp_path_factory) -> tuple[RunResult, Trained]:
    """With `average=none` the second candidate is chosen, and trained once more."""
    out, trained = tmp_path_factory.mktemp("once") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fine_tune", remembering(trained, out))
        patch.setattr(module, "choose_mixture", choosing(1))
        options = {"strength": "auto", "average": "none", "folds": 2, "epochs": 1}
        result = train(flat(images, out, method=METHOD, **options))
    return result, trained


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    return prepare(flat(images, tmp_path_factory.mktemp("prepared"), method=METHOD))


class TestFolds:
    def test_every_image_is_held_out_once_and_never_trained_on_then(self, folded):
        _, trained = folded
        places = [*(f"folds/{fold}" for fold in (1, 2, 3)), "final"]
        names = [f"{place}{own}" for place in places for own in ("", "/strength-0.1")]
        assert [name for name, *_ in trained] == names
        *folds, final = [plan.setup.task for _, plan, _ in trained[::2]]
        assert [*folds, final] == [plan.setup.task for _, plan, _ in trained[1::2]]
        held_out = [path for task in folds for path in task.val.paths]
        assert len(held_out) == len(set(held_out)) == 18
        for task in folds:
            assert not set(task.train.paths) & set(task.val.paths)
            assert sorted([*task.train.paths, *task.val.paths]) == sorted(held_out)
            assert sorted(task.val.labels) == [0, 0, 1, 1, 2, 2]
            assert not {*task.train.paths, *task.val.paths} & set(task.test.paths)
        assert sorted(final.train.paths) == sorted(held_out)

    def test_the_network_is_the_average_over_folds_and_the_trainings_on_all(self, folded):
        result, trained = folded
        assert result.model_selection.averages_folds
        states = []
        for (_, plan, strong), (_, _, weak) in zip(trained[::2], trained[1::2], strict=True):
            states += [initial(plan.setup), strong.network.state_dict(), weak.network.state_dict()]
        assert_mixed(model(result), states, result.model_selection.mixing_coefficients)

    def test_what_was_chosen_and_why_is_stored(self, folded):
        result, _ = folded
        found = result.model_selection
        assert found.strengths == (STRONG.strength, WEAK.strength)
        assert (found.folds, found.averaged, result.num_folds) == (3, True, 3)
        assert list(found.losses) == [format_percent(one) for one in mixtures(2, averaged=True)]
        assert found.mixing_coefficients == mixtures(2, averaged=True)[1]
        assert min(found.mixing_coefficients) > 0
        assert result.trained_share == found.trained_share == 1 - found.mixing_coefficients[0]
        assert (result.num_train_samples, result.epochs) == (18, 2)
        assert RunResult.load(result.folder) == result
        log = (result.folder / "train.log").read_text()
        assert f"weights  {format_percent(found.mixing_coefficients)} percent of the start" in log
        assert "fold     3 of 3" in log

    def test_predictions_and_losses_are_of_networks_not_trained_on_the_images(self, folded):
        """Computed again, for the chosen mixture and the start."""
        result, trained = folded
        selection = result.model_selection
        for mixture in {selection.mixing_coefficients, (1.0, 0.0, 0.0)}:
            logits, labels = [], []
            for (_, plan, strong), (_, _, weak) in zip(trained[:6:2], trained[1:6:2], strict=True):
                network = strong.network
                states = [one.network.state_dict() for one in (strong, weak)]
                own = {name: tensor.clone() for name, tensor in states[0].items()}
                mixed = {
                    name: sum(
                        s * t[name]
                        for s, t in zip(mixture, [initial(plan.setup), *states], strict=True)
                    )
                    if tensor.is_floating_point()
                    else tensor
                    for name, tensor in own.items()
                }
                network.load_state_dict(mixed)
                with torch.no_grad():
                    for inputs, targets in plan.loaders.eval_dataloader(plan.setup.task.val):
                        logits.append(network.eval()(inputs))
                        labels.append(targets)
                network.load_state_dict(own)
            outputs, targets = torch.cat(logits), torch.cat(labels)
            loss = float(temperature_scaled_nll(outputs, targets))
            assert selection.losses[format_percent(mixture)] == pytest.approx(loss, abs=2e-4)
            accuracy = (outputs.argmax(dim=1) == targets).double().mean().item()
            if mixture == selection.mixing_coefficients:
                assert result.val_accuracy == pytest.approx(accuracy)
            else:  # the start is the probe
                assert result.linear_probe_val_accuracy == pytest.approx(accuracy)

    def test_the_probe_beside_it_is_trained_on_all_images(self, folded, prepared):
        result, _ = folded
        everything = list(range(18))
        probe = module.resplit(prepared, train=everything, val=everything)
        assert result.linear_probe_test_accuracy == probe.probe_scores["test"]

    @pytest.mark.parametrize(("name", "keys"), [("metrics.csv", 1), ("drift.csv", 2)])
    @pytest.mark.parametrize("own", ["", "strength-0.1"])
    def test_the_curves_are_the_mean_of_the_folds(self, folded, name, keys, own):
        result, _ = folded
        mean = rows(result.folder / own / name)
        each = [rows(result.folder / "folds" / str(fold) / own / name) for fold in (1, 2, 3)]
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

    def test_folds_without_a_metric_do_not_count(self, tmp_path):
        for name, figures in (("a", "0.5,nan"), ("b", "nan,nan"), ("c", "0.25,nan")):
            (tmp_path / name).write_text(f"epoch,val_roc_auc,other\n3,{figures}\n")
        mean = module._average(sorted(tmp_path.iterdir()), ["epoch"])
        assert mean == "epoch,val_roc_auc,other\n3,0.375,\n"

    def test_the_folder_is_known_for_one_of_a_run_and_has_no_checkpoints(self, folded):
        result, _ = folded
        assert find_foreign_file(result.folder) is None
        assert not list(result.folder.glob("**/*.ckpt"))

    def test_without_a_test_split_predictions_are_of_all_images_held_out(self, images, tmp_path):
        config = tiny(images / "train", tmp_path / "run", method="l2", epochs=1, folds=2)
        result = train(config)
        found = rows(tmp_path / "run" / "predictions.csv")
        assert len({row["path"] for row in found}) == len(found) == 24
        right = sum(row["label"] == row["prediction"] for row in found)
        assert result.val_accuracy == pytest.approx(right / 24)
        assert result.probe_comparison.num_samples == 24
        assert result.test_accuracy is None
        # The random heads of all folds are the same, so that their networks may be averaged.
        assert result.model_selection.averaged

    def test_a_class_with_a_single_image_is_held_out_too(self, images, tmp_path):
        data = shutil.copytree(images / "train", tmp_path / "data")
        for number in range(2, 8):
            (data / CLASSES[0] / f"{number}.png").unlink()
        options = {"method": "l2", "epochs": 1, "class_weights": "balanced", "folds": 3}
        result = train(tiny(data, tmp_path / "run", **options))
        assert result.num_train_samples == 18

    @pytest.mark.parametrize(
        ("own", "folds", "message"),
        [
            (True, 3, "`folds=3`: .* has its own validation split"),
            (False, 7, "`folds=7`: the largest class has only 6 images"),
        ],
    )
    def test_folds_that_the_data_forbids_are_refused(self, images, tmp_path, own, folds, message):
        make = tiny if own else flat
        with pytest.raises(UserError, match=message):
            train(make(images, tmp_path / "run", folds=folds))
        assert not (tmp_path / "run").exists()

    def test_images_that_cannot_be_read_count_for_nothing(self, images, tmp_path):
        data = shutil.copytree(images / "train", tmp_path / "data")
        for name in CLASSES:
            (data / name / "0.png").write_text("no image")
        with pytest.raises(UserError, match="the largest class has only 7 images"):
            train(tiny(data, tmp_path / "run", folds=8))

    def test_a_number_of_images_per_class_is_exact(self, images, tmp_path):
        config = flat(images, tmp_path / "run", method="probe", samples_per_class=4)
        result = train(config)
        setup = prepare(config)
        assert sorted(setup.task.train.labels) == 4 * [0] + 4 * [1] + 4 * [2]
        assert result.num_train_samples == 12
        plan = make_plan(setup, config)
        assert plan.folds == 3
        held_out = [path for one in plan.held_out_setups for path in one.task.val.paths]
        assert sorted(held_out) == sorted(setup.task.train.paths)


class TestProbe:
    def test_it_is_trained_on_all_images_after_the_folds(self, images, tmp_path, prepared):
        result = train(flat(images, tmp_path / "run", method="probe"))
        assert result.val_accuracy == result.linear_probe_val_accuracy
        assert result.test_accuracy == result.linear_probe_test_accuracy
        assert (result.num_train_samples, result.epochs, result.trained_share) == (18, 0, 0.0)
        assert result.model_selection is None
        everything = list(range(18))
        probe = module.resplit(prepared, train=everything, val=everything).probe
        assert torch.equal(model(result)["fc.weight"], probe.weight)


class TestStart:
    def test_it_is_kept_if_no_training_is_better(self, images, tmp_path, monkeypatch, prepared):
        """The network is then the probe of all images."""
        monkeypatch.setattr(module, "choose_mixture", choosing(-1))
        options = {"method": "lp_ft", "folds": 2, "epochs": 1}
        result = train(flat(images, tmp_path / "run", **options))
        assert result.model_selection.mixing_coefficients == (1.0, 0.0)
        assert result.trained_share == 0
        assert result.val_accuracy == result.linear_probe_val_accuracy
        assert result.test_accuracy == result.linear_probe_test_accuracy
        assert result.probe_comparison.difference == 0
        everything = list(range(18))
        setup = module.resplit(prepared, train=everything, val=everything)
        found = model(result)
        for name, tensor in initial(setup).items():
            assert torch.equal(found[name], tensor)
        assert "no training was better than the start" in (result.folder / "train.log").read_text()

    def test_without_folds_too(self, images, tmp_path):
        """Where training destroys."""
        result = train(tiny(images, tmp_path / "run", method="lp_ft", lr=0.1, epochs=1))
        assert result.trained_share == 0
        choices = [format_percent(one) for one in mixtures(1, averaged=True)]
        assert list(result.model_selection.losses) == choices
        assert result.model_selection.strengths == (METHODS["lp_ft"].default_strength,)
        assert result.test_accuracy == result.linear_probe_test_accuracy
        setup = prepare(tiny(images, tmp_path / "other"))
        found = model(result)
        for name, tensor in initial(setup).items():
            assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("average", ["all", "none"])
@pytest.mark.parametrize("head_init", ["probe", "random"])
def test_an_untrained_random_head_is_no_result(prepared, images, tmp_path, head_init, average):
    options = {"method": METHOD, "head_init": head_init, "average": average}
    plan = make_plan(prepared, flat(images, tmp_path / "run", **options))
    starts_alone = [mixture for mixture in module._choices(plan) if mixture[0] == 1]
    assert len(starts_alone) == (head_init == "probe")


class TestTrainingOnAll:
    def test_the_chosen_candidate_is_trained_once_more_on_all_images(self, once):
        result, trained = once
        assert result.model_selection.mixing_coefficients == (0.0, 0.0, 1.0)
        assert result.num_train_samples == 18
        assert result.strength == WEAK.strength
        name, plan, last = trained[-1]
        assert (name, len(plan.setup.task.train)) == ("final/strength-0.1", 18)
        found = model(result)
        for key, tensor in last.network.state_dict().items():
            assert torch.equal(found[key], tensor)
        assert "training on all 18 images" in (result.folder / "train.log").read_text()

    def test_there_are_no_averages_to_choose_from(self, once):
        found = once[0].model_selection
        assert (found.averaged, found.averages_folds) == (False, False)
        assert list(found.losses) == ["0/100/0", "0/0/100", "100/0/0"]

    def test_its_folder_is_known_for_one_of_a_run(self, once):
        assert find_foreign_file(once[0].folder) is None
        assert not list(once[0].folder.glob("**/*.ckpt"))

    def test_checkpoints_of_folds_are_kept_until_it_is_over(self, images, tmp_path, monkeypatch):
        def fail(*arguments: Any, validate: bool) -> Any:
            if not validate:
                raise UserError("training diverged")
            return original(*arguments, validate=validate)

        original = module.fine_tune
        monkeypatch.setattr(module, "fine_tune", fail)
        monkeypatch.setattr(module, "choose_mixture", choosing(0))
        options = {"method": "l2", "folds": 2, "epochs": 1, "average": "none"}
        with pytest.raises(UserError, match="training diverged"):
            train(flat(images, tmp_path / "run", **options))
        assert len(list(tmp_path.glob("run/folds/*/checkpoints/last.ckpt"))) == 2

    @pytest.mark.parametrize(
        ("options", "averages"),
        [
            ({}, True),
            ({"average": "none"}, False),
            ({"batch_norm": "train"}, False),  # averaged statistics fit no network
            ({"method": "stochnorm"}, False),
        ],
    )
    def test_weights_are_averaged_where_batch_norm_is_frozen(self, prepared, options, averages):
        config = flat(Path("images"), Path("run"), **{"method": METHOD, **options})
        plan = make_plan(prepared, config)
        assert plan.averages_weights == averages
        expected = mixtures(len(plan.candidates), averaged=averages)
        if plan.method.head_init == "random":
            expected = expected[:-1]
        assert module._choices(plan) == expected

    def test_networks_with_different_heads_are_not_averaged(self, prepared):
        plan = make_plan(
            prepared, flat(Path("images"), Path("run"), method=METHOD, strength="auto")
        )
        plan = dataclasses.replace(plan, method=find_method(METHOD, preset="graphs"))
        assert module._choices(plan) == mixtures(2, averaged=False)

    def test_the_protocol_of_the_paper_chooses_nothing(self, prepared):
        plan = make_plan(prepared, flat(Path("images"), Path("run"), method="l2"))
        config = dataclasses.replace(plan.config, preset="paper")
        plan = dataclasses.replace(plan, config=config)
        assert plan.config.paper_protocol
        assert module._choices(plan) == ((0.0, 1.0),)
        assert not plan.averages_weights


def reorder(network: nn.Module) -> None:
    """The same function with other weights: the last features in the opposite order."""
    with torch.no_grad():
        for tensor in network.conv3.parameters():
            tensor.copy_(tensor.flip(0))
        network.fc.weight.copy_(network.fc.weight.flip(1))


class TestBarriers:
    """Networks that are far apart are not averaged, however good each of them is."""

    @pytest.mark.parametrize("apart", ["folds/2", "final/strength-0.1"])
    def test_one_that_is_far_from_the_others(self, images, tmp_path, monkeypatch, apart):
        out, trained = tmp_path / "run", []
        original = remembering(trained, out)

        def train_one(plan: FineTunePlan, folder: Path, **options: Any) -> Any:
            found = original(plan, folder, **options)
            if folder.relative_to(out).as_posix() == apart:
                reorder(found.network)
            return found

        monkeypatch.setattr(module, "fine_tune", train_one)
        monkeypatch.setattr(module, "choose_mixture", choosing(0))
        options = {"strength": "auto", "folds": 2, "epochs": 1}
        result = train(flat(images, out, method=METHOD, **options))
        selection, (strong, weak) = result.model_selection, (one for *_, one in trained[-2:])
        states = [one.network.state_dict() for one in (strong, strong, weak)]
        if apart == "folds/2":
            assert not selection.averages_folds
            assert selection.mixing_coefficients == (0.0, 0.5, 0.5)
            assert_mixed(model(result), states, (0.0, 0.5, 0.5))
        else:
            losses = selection.losses
            best = min(("0/100/0", "0/0/100"), key=losses.__getitem__)
            assert format_percent(selection.mixing_coefficients) == best

    def test_none(self, folded):
        assert folded[0].model_selection.averages_folds


@pytest.fixture(scope="module")
def found(images, tmp_path_factory) -> RunResult:
    """Two candidates without folds, as the data brings its own validation split."""
    out = tmp_path_factory.mktemp("auto") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose_mixture", choosing(1))
        return train(tiny(images, out, method="l2sp", strength="auto", lr=1e-3))


class TestCandidates:
    def test_without_folds_the_network_is_an_average_too(self, found):
        selection = found.model_selection
        assert (selection.folds, found.num_train_samples) == (0, 24)
        strong, weak = METHODS["l2sp"].candidates
        assert selection.strengths == (strong.strength, weak.strength)
        setup = prepare(TrainConfig.load(found.folder / "config.yaml"))
        own = found.folder / f"strength-{weak.strength:g}"
        states = [initial(setup), checkpoint(found.folder), checkpoint(own)]
        assert_mixed(model(found), states, selection.mixing_coefficients)

    def test_the_held_out_loss_of_the_start_is_that_of_epoch_zero(self, found):
        validated = [
            float(row["val_calibrated_loss"])
            for row in rows(found.folder / "metrics.csv")
            if row["val_calibrated_loss"]
        ]
        assert found.model_selection.losses["100/0/0"] == pytest.approx(validated[0], abs=1e-4)

    def test_the_strength_is_their_geometric_mean(self, found):
        logs = [math.log(strength) for strength in found.model_selection.strengths]
        mean = np.average(logs, weights=found.model_selection.mixing_coefficients[1:])
        assert found.strength == pytest.approx(math.exp(mean), rel=1e-5)

    def test_the_second_one_sees_the_images_in_another_order(self, prepared, monkeypatch, tmp_path):
        config = flat(Path("images"), tmp_path, method=METHOD, strength="auto")
        seeds = []

        def remember(loaders, split):
            seeds.append(loaders.config.seed)
            raise UserError("enough")

        monkeypatch.setattr(Dataloaders, "train_dataloader", remember)
        for number, candidate in enumerate(make_plan(prepared, config).candidates):
            with pytest.raises(UserError, match="enough"):
                fine_tune.fine_tune(candidate, tmp_path / f"order{number}")
        assert seeds[0] == config.seed != seeds[1]

    def test_one_may_begin_with_a_head_of_its_own(self, prepared):
        config = flat(Path("images"), Path("run"), method=METHOD, strength="auto")
        plan = make_plan(prepared, config)
        both = dataclasses.replace(plan, method=find_method(METHOD, preset="graphs")).candidates
        probed, drawn = (fine_tune.initialize_network(one) for one in both)
        head = prepared.backbone.head
        assert torch.equal(probed.get_submodule(head).weight, prepared.probe.weight)
        random = prepared.backbone.module.get_submodule(head).weight
        assert torch.equal(drawn.get_submodule(head).weight, random)

    @pytest.mark.parametrize("head_init", ["probe", "random"])
    @pytest.mark.parametrize("method", [METHOD, "l2", "probe"])
    def test_all_begin_with_the_head_of_the_option(self, prepared, method, head_init):
        options = {"strength": "auto", "head_init": head_init}
        plan = make_plan(prepared, flat(Path("images"), Path("run"), method=method, **options))
        head = prepared.backbone.head
        random = prepared.backbone.module.get_submodule(head).weight
        probed = method == "probe" or head_init == "probe"  # which has no other head
        for candidate in plan.candidates:
            found = fine_tune.initialize_network(candidate).get_submodule(head).weight
            assert torch.equal(found, prepared.probe.weight if probed else random)

    def test_one_that_diverges_is_named(self, images, tmp_path, monkeypatch):
        def fail(plan: FineTunePlan, folder: Path, **options: Any) -> None:
            raise UserError("training diverged")

        monkeypatch.setattr(module, "fine_tune", fail)
        with pytest.raises(UserError, match=r"diverged .*strength 1; .*trains once"):
            train(tiny(images, tmp_path / "run", method=METHOD, strength="auto"))


def with_classifier(setup: RunSetup, num_classes: int = 5) -> RunSetup:
    """As of a network whose pretraining had so many classes, all of which some image has."""
    views, _ = setup.features["train"]
    classifier = nn.Linear(views.shape[-1], num_classes)
    mean, rows = views[:, 0].mean(dim=0), views[:num_classes, 0]
    with torch.no_grad():
        classifier.weight.copy_(torch.nn.functional.normalize(rows - mean))
        classifier.bias.copy_(-classifier.weight @ mean)
    return dataclasses.replace(
        setup, backbone=dataclasses.replace(setup.backbone, classifier=classifier)
    )


def select(setup: RunSetup, out: Path, trained: Trained, **options: Any) -> module.SelectionResult:
    """Without a training on all images, and with trainings that move some classes."""
    config = flat(Path("images"), out, method=METHOD, strength="auto", lr=4e-4, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "fine_tune", remembering(trained, out))
        return module.select_model(make_plan(setup, config), out, keep_network=False)


@pytest.fixture(scope="module")
def compared(prepared, tmp_path_factory) -> tuple[module.SelectionResult, Trained]:
    """With the classes of pretraining, three folds and two candidates."""
    trained: Trained = []
    out = tmp_path_factory.mktemp("compared") / "run"
    return select(with_classifier(prepared), out, trained), trained


class TestTradeOff:
    """Accuracy and kept agreement of every mixture, on images that it was not trained on."""

    def test_all_mixtures_computed_again(self, compared):
        """Image by image, with heads and features taken apart."""
        selected, trained = compared
        found = selected.model_selection
        choices = mixtures(2, averaged=True)
        keys = [format_percent(one) for one in choices]
        assert list(found.accuracies) == list(found.agreements) == list(found.losses) == keys
        for mixture, key in zip(choices, keys, strict=True):
            correct, agreeing = [], []
            for (_, plan, strong), (_, _, weak) in zip(trained[::2], trained[1::2], strict=True):
                states = [initial(plan.setup), *(r.network.state_dict() for r in (strong, weak))]
                network, source = conv_net(), conv_net()
                network.load_state_dict(
                    {
                        name: sum(s * t[name] for s, t in zip(mixture, states, strict=True))
                        if tensor.is_floating_point()
                        else tensor
                        for name, tensor in states[-1].items()
                    }
                )
                head, network.fc, source.fc = network.fc, nn.Identity(), nn.Identity()
                classifier = plan.setup.backbone.classifier
                for images, labels in plan.loaders.eval_dataloader(plan.setup.task.val):
                    for image, label in zip(images, labels, strict=True):
                        own, before = network(image[None]), source(image[None])
                        correct.append(bool(head(own).argmax() == label))
                        agreeing.append(
                            bool(classifier(own).argmax() == classifier(before).argmax())
                        )
            assert len(correct) == 18
            assert found.accuracies[key] == pytest.approx(sum(correct) / 18)
            assert found.agreements[key] == pytest.approx(sum(agreeing) / 18)
        assert found.agreements["100/0/0"] == 1
        assert len(set(found.agreements.values())) > 3  # so that the test tells something
        assert len(set(found.accuracies.values())) > 2

    def test_shards_of_several_processes_are_the_same(self, prepared, tmp_path, monkeypatch):
        def in_two(count: int, size: int, make: Any) -> tuple[Tensor, ...]:
            batches = [range(s, min(s + size, count)) for s in range(0, count, size)]
            own = [[i for batch in batches[rank::2] for i in batch] for rank in (0, 1)]
            rows = zip(*(make(indices) for indices in own if indices), strict=True)
            order = torch.tensor([i for indices in own for i in indices]).argsort()
            return tuple(torch.cat(parts)[order] for parts in rows)

        options = {"batch_size": 4, "folds": 2, "epochs": 1}
        expected = select(with_classifier(prepared), tmp_path / "once", [], **options)
        monkeypatch.setattr(module, "shard_and_gather", in_two)
        found = select(with_classifier(prepared), tmp_path / "run", [], **options)
        assert found.model_selection == expected.model_selection
        assert found.model_selection.agreements

    def test_each_mixture_runs_once_over_the_images(self, prepared, tmp_path, monkeypatch):
        counts = []
        original = Dataloaders.eval_dataloader

        def count(loaders: Dataloaders, split: Any) -> Any:
            counts.append(len(split))
            return original(loaders, split)

        calls = []
        for setup in (prepared, with_classifier(prepared)):
            with monkeypatch.context() as patch:
                patch.setattr(Dataloaders, "eval_dataloader", count)
                select(setup, tmp_path / str(len(calls)), [], folds=2, epochs=1)
            calls.append(list(counts))
            counts.clear()
        assert calls[0] == calls[1]

    def test_without_the_classifier_there_is_no_agreement(self, folded):
        found = folded[0].model_selection
        assert found.agreements == {}
        assert list(found.accuracies) == list(found.losses)
        chosen = format_percent(found.mixing_coefficients)
        assert found.accuracies[chosen] == folded[0].val_accuracy
        assert found.accuracies["100/0/0"] == folded[0].linear_probe_val_accuracy
