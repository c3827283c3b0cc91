"""Runs with the options of docs/training.md, from the options to the folder."""

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay

from delta_transfer import train
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.model_soup import average_states
from delta_transfer.runs.plan import RANDOM_HEAD_LR_FACTOR
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.training.module import FineTuneModule
from tests.run_folders import model_bytes, tiny

ALL = {
    "gradient_accumulation_steps": 3,
    "precision": "bf16",
    "grad_clip": 0.5,
    "ema": 0.5,
    "layer_decay": 0.75,
    "deterministic": True,
}


@pytest.mark.slow
def test_moving_averages_of_both_trainings_are_what_is_averaged(images, tmp_path):
    options = {"method": "delta", "strength": "auto", **ALL}
    config = tiny(images, tmp_path / "run", **options)
    found = train(config)
    setup = prepare(config)
    head = setup.backbone.head
    start = dict(setup.backbone.module.state_dict())
    start |= {f"{head}.weight": setup.probe.weight, f"{head}.bias": setup.probe.bias}
    states = [start]
    for name in (".", "strength-0.1"):
        path = found.folder / name / "checkpoints" / "last.ckpt"
        state = torch.load(path, weights_only=True)["state_dict"]
        prefix = "ema_network.module."
        states.append({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
    expected = average_states(states, found.model_selection.mixing_coefficients)
    model = load_file(found.folder / "model" / "model.safetensors")
    for name, tensor in model.items():
        assert torch.allclose(tensor, expected[name].to(tensor), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("lr", ["find", 1e-3])
def test_a_run_with_every_option_goes_on_to_the_same_bytes(images, tmp_path, monkeypatch, lr):
    options = {"method": "delta", "lr": lr, "checkpoint_steps": 1, **ALL}
    whole = train(tiny(images, tmp_path / "whole", **options))
    broken, steps = tiny(images, tmp_path / "broken", **options), []
    step = FineTuneModule.training_step

    def limited(self, batch, index):
        if self.optimizer_config.schedule != "exponential":
            steps.append(index)
        if len(steps) == 5:
            raise RuntimeError("broken off")
        return step(self, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuneModule, "training_step", limited)
        with pytest.raises(RuntimeError, match="broken off"):
            train(broken)
    again = train(dataclasses.replace(broken, resume=True))
    assert model_bytes(again.folder) == model_bytes(whole.folder)
    assert (again.folder / "lr.csv").is_file() == (lr == "find")
    for name in ("metrics.csv", "drift.csv", "predictions.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert RunResult.load(again.folder).val_accuracy == whole.val_accuracy


@pytest.mark.slow
def test_rates_of_a_run_go_by_head_and_layers(images, tmp_path, monkeypatch):
    rates = {}
    configure = FineTuneModule.configure_optimizers

    def note(self):
        made = configure(self)
        names = {id(p): name for name, p in self.network.named_parameters()}
        for group in made["optimizer"].param_groups:
            rates.update({names[id(p)]: group["initial_lr"] for p in group["params"]})
        return made

    monkeypatch.setattr(FineTuneModule, "configure_optimizers", note)
    train(tiny(images, tmp_path / "run", method="l2", layer_decay=0.5, epochs=1))
    assert rates["classifier.weight"] == pytest.approx(RANDOM_HEAD_LR_FACTOR * 1e-4)
    network = timm.create_model("tf_efficientnet_lite0", num_classes=3)
    names = {id(p): name for name, p in network.named_parameters()}
    scales = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(network, layer_decay=0.5)
        for p in group["params"]
    }
    for name, scale in scales.items():
        if not name.startswith("classifier."):
            assert rates[name] == pytest.approx(scale * 1e-4)
    assert min(scales.values()) < 0.01
