"""`--strength auto` from the options to the folder: two trainings, one network."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from delta_transfer import train
from delta_transfer.errors import UserError
from delta_transfer.features.probe import fit_probe
from delta_transfer.methods.registry import METHODS, find_method
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs import fine_tune, model_soup
from delta_transfer.runs.folder import find_foreign_file
from delta_transfer.runs.model_soup import (
    CANDIDATE_COEFFICIENTS,
    SINGLE_MODELS,
    average_states,
    format_percent,
)
from delta_transfer.runs.plan import make_plan
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.training.loaders import Dataloaders
from tests.run_folders import tiny

METHOD = "delta_no_attention"
STRONG, WEAK = METHODS[METHOD].candidates


@pytest.fixture(scope="module")
def found(images, tmp_path_factory) -> RunResult:
    out = tmp_path_factory.mktemp("auto") / "run"
    return train(tiny(images, out, method=METHOD, strength="auto"))


def weights(checkpoint: Path) -> dict[str, Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {
        name.removeprefix("network."): tensor
        for name, tensor in state.items()
        if name.startswith("network.")
    }


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_the_network_is_the_average_of_the_start_and_both_trainings(found, images):
    prepared = prepare(tiny(images, found.folder))
    start = dict(prepared.backbone.module.state_dict())
    rows, labels = prepared.features["train"]
    probe = fit_probe(rows, labels, num_outputs=3, standardize=False)
    start |= {"classifier.weight": probe.weight, "classifier.bias": probe.bias}
    best = "checkpoints/best.ckpt"
    parts = [start, weights(found.folder / best), weights(found.folder / "weaker" / best)]
    search = found.strength_search
    assert search is not None
    assert search.mixing_coefficients in CANDIDATE_COEFFICIENTS
    model = load_file(found.folder / "model" / "model.safetensors")
    for name, tensor in model.items():
        if tensor.is_floating_point():
            mixed = sum(
                s * part[name] for s, part in zip(search.mixing_coefficients, parts, strict=True)
            )
            torch.testing.assert_close(tensor, mixed)


def test_what_was_chosen_why_and_at_what_cost_is_stored(found):
    search = found.strength_search
    assert search.strengths == (STRONG.strength, WEAK.strength)
    assert list(search.losses) == [format_percent(shares) for shares in CANDIDATE_COEFFICIENTS]
    lowest = min(search.losses.values())
    assert (
        search.mixing_coefficients == CANDIDATE_COEFFICIENTS[0]
        or search.losses[format_percent(search.mixing_coefficients)] == lowest
    )
    assert 0 < search.wall_time_s < found.wall_time_s
    share = search.mixing_coefficients[2] / (
        search.mixing_coefficients[1] + search.mixing_coefficients[2]
    )
    mean = math.log(STRONG.strength) * (1 - share) + math.log(WEAK.strength) * share
    assert found.strength == pytest.approx(math.exp(mean), rel=1e-5)
    assert RunResult.load(found.folder) == found
    log = (found.folder / "train.log").read_text()
    assert "strength auto: " in log
    assert format_percent(search.mixing_coefficients) in log


def test_the_held_out_loss_of_the_start_is_that_of_epoch_zero(found):
    losses = column(found.folder / "metrics.csv", "val_calibrated_loss")
    assert found.strength_search.losses["100/0/0"] == pytest.approx(losses[0], abs=1e-4)


def test_the_weaker_training_is_faster(found):
    strong, weak = found.folder / "metrics.csv", found.folder / "weaker" / "metrics.csv"
    ratio = [b / a for a, b in zip(column(strong, "lr"), column(weak, "lr"), strict=True)]
    assert ratio == pytest.approx([WEAK.lr_scale / STRONG.lr_scale] * len(ratio), rel=1e-5)


def test_the_second_training_sees_the_images_in_another_order(found, images, monkeypatch):
    config = tiny(images, found.folder, method=METHOD, strength="auto", head_lr=0.5)
    seeds = []

    def remember(loaders, split):
        seeds.append(loaders.config.seed)
        raise UserError("enough")

    monkeypatch.setattr(Dataloaders, "train_dataloader", remember)
    both = make_plan(prepare(config), config).candidates
    assert [one.config.head_lr for one in both] == [0.5 * STRONG.lr_scale, 0.5 * WEAK.lr_scale]
    for number, branch in enumerate(both):
        with pytest.raises(UserError, match="enough"):
            fine_tune.fine_tune(branch, found.folder.with_name(f"order{number}"))
    assert seeds[0] == config.seed != seeds[1]


def test_a_training_may_begin_with_a_head_of_its_own(images, tmp_path):
    config = tiny(images, tmp_path, method=METHOD, strength="auto")
    prepared, method = prepare(config), find_method(METHOD, preset="graphs")
    both = dataclasses.replace(make_plan(prepared, config), method=method).candidates
    probed, drawn = (fine_tune.initialize_model(branch)[0] for branch in both)
    head = prepared.backbone.head
    assert torch.equal(probed.get_submodule(head).weight, prepared.unstandardized_probe.weight)
    random = prepared.backbone.module.get_submodule(head).weight
    assert torch.equal(drawn.get_submodule(head).weight, random)


def test_batch_norm_that_moves_is_trained_once(images, tmp_path):
    config = tiny(images, tmp_path, method=METHOD, strength="auto", batch_norm="train")
    once = make_plan(prepare(config), config)
    assert once.candidates == (once,)
    assert once.strength == STRONG.strength


def test_a_training_that_diverges_is_named(images, tmp_path, monkeypatch):
    def fail(plan, folder):
        raise UserError("training diverged")

    monkeypatch.setattr(model_soup, "select_epoch", fail)
    with pytest.raises(UserError, match=r"diverged .*strength 1; `strength=1` trains once"):
        train(tiny(images, tmp_path / "run", method=METHOD, strength="auto"))


def test_its_folder_is_known_for_one_of_a_run(found):
    assert find_foreign_file(found.folder) is None


def test_a_strength_that_is_given_is_trained_with_once(finished):
    assert finished.strength_search is None
    assert finished.strength == 1.0
    assert not (finished.folder / "weaker").exists()


@pytest.mark.parametrize(
    ("preset", "candidates"),
    [
        ("default", CANDIDATE_COEFFICIENTS),
        pytest.param("graphs", SINGLE_MODELS, marks=pytest.mark.slow),
    ],
)
def test_folds_and_the_refit_go_with_it(images, tmp_path, monkeypatch, preset, candidates):
    refitted = []

    def remember(*arguments, **options):
        refitted.append(refit(*arguments, **options))
        return refitted[-1]

    refit = model_soup.refit
    monkeypatch.setattr(model_soup, "refit", remember)
    options = {"test_split": "0.25", "folds": 2, "epochs": 1, "strength": "auto", "preset": preset}
    result = train(tiny(images / "train", tmp_path / "run", method=METHOD, **options))
    strong, weak = refitted
    states = [strong.initial_state, strong.network.state_dict(), weak.network.state_dict()]
    expected = average_states(states, result.strength_search.mixing_coefficients)
    for name, tensor in load_file(result.folder / "model" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name])
    assert result.refitted
    search = result.strength_search
    assert list(search.losses) == [format_percent(shares) for shares in candidates]
    for one, share, epoch in zip(
        refitted, search.mixing_coefficients[1:], search.best_epochs, strict=True
    ):
        assert one.fit_result.epoch == (epoch if share else 0)  # what is not taken is not trained
    for folder in (result.folder, result.folder / "weaker"):
        for part in ("folds/1", "folds/2"):
            assert (folder / part / "metrics.csv").is_file()
            assert not (folder / part / "checkpoints").exists()
    assert result.best_epoch == max(
        epoch * (share > 0)
        for epoch, share in zip(search.best_epochs, search.mixing_coefficients[1:], strict=True)
    )
