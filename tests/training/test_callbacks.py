import csv
import logging
import math
from types import SimpleNamespace

import pytest
import torch

from delta_transfer.metrics.task_types import MULTICLASS
from delta_transfer.training.callbacks import LogValidation, MeasureDrift, ReinitializeHead
from tests.networks import conv_net, hooks_of, moved


def features(network: torch.nn.Module, tap: str, inputs: torch.Tensor) -> torch.Tensor:
    """Rows `[samples and positions, channels]`, by a plain hook."""
    found = []
    handle = network.get_submodule(tap).register_forward_hook(
        lambda module, given, output: found.append(output.clone())
    )
    with torch.no_grad():
        network(inputs)
    handle.remove()
    return found[0].movedim(1, -1).flatten(0, -2)


def test_drift_is_the_distance_in_units_of_the_features_variance(tmp_path):
    source, target = conv_net(), conv_net()
    source.fc = torch.nn.Identity()  # a source needs no head
    inputs = torch.randn(5, 3, 8, 8)
    drift = MeasureDrift(
        target, source, taps=["conv2", "conv3"], inputs=inputs, path=tmp_path / "drift.csv"
    )
    trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), current_epoch=0)
    drift.on_validation_end(trainer, None)
    target.load_state_dict(moved(target).state_dict())
    target.train()
    target.norm1.eval()
    trainer.state.fn, trainer.current_epoch = "fit", 2
    drift.on_validation_end(trainer, None)
    with (tmp_path / "drift.csv").open() as file:
        found = {(row["epoch"], row["tap"]): float(row["distance"]) for row in csv.DictReader(file)}
    assert list(found) == [("0", "conv2"), ("0", "conv3"), ("3", "conv2"), ("3", "conv3")]
    # The network is borrowed: its flags are its own again, and no hooks are left.
    assert target.training
    assert not target.norm1.training
    assert hooks_of(target) == hooks_of(source) == 0
    target.eval()
    for tap in ("conv2", "conv3"):
        now, then = features(target, tap, inputs), features(source, tap, inputs)
        variance = ((then - then.mean(dim=0)) ** 2).mean(dim=0).mean()
        expected = 0.5 * ((now - then) ** 2).mean() / variance
        assert found["0", tap] == 0
        assert found["3", tap] == pytest.approx(expected.item(), rel=1e-4)


def test_the_head_is_drawn_anew_where_a_cycle_starts_and_the_optimiser_forgets_it():
    head, other = torch.nn.Linear(400, 3), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*head.parameters(), *other.parameters()])
    redraw = ReinitializeHead(head, num_cycles=3, generator=torch.Generator().manual_seed(0))
    trainer = SimpleNamespace(estimated_stepping_batches=10, optimizers=[optimizer])
    drawn, states, global_state = [], [], torch.get_rng_state()
    for step in range(10):
        for parameter in (*head.parameters(), *other.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        before = head.weight.detach().clone()
        trainer.global_step = step
        redraw.on_train_batch_start(trainer, None, None, 0)
        if not torch.equal(head.weight, before):
            drawn.append(step)
            states.append([p in optimizer.state for p in (head.weight, head.bias, other.weight)])
            for values in (head.weight, head.bias):  # as torch draws them
                assert values.abs().max() <= 0.05
            assert head.weight.abs().max() > 0.049
            assert head.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.1)
    assert drawn == [3, 6]
    assert states == [[False, False, True]] * 2
    assert torch.equal(torch.get_rng_state(), global_state)


def test_each_validation_is_logged(caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    module = SimpleNamespace(task_type=MULTICLASS)
    for function, current, accuracy, loss in (("validate", 0, 0.5, 1.0), ("fit", 2, 0.25, 2.0)):
        trainer = SimpleNamespace(
            state=SimpleNamespace(fn=function),  # epoch 0 is validated before the fit
            current_epoch=current,
            max_epochs=5,
            callback_metrics={
                "val_accuracy": torch.tensor(accuracy),
                "val_loss": torch.tensor(loss),
                "val_calibrated_loss": torch.tensor(loss / 2),
            },
        )
        LogValidation().on_validation_end(trainer, module)
    assert [record.message for record in caplog.records] == [
        "epoch 0 of 5: validation accuracy 50.0%, loss 1.000 (calibrated 0.500)",
        "epoch 3 of 5: validation accuracy 25.0%, loss 2.000 (calibrated 1.000)",
    ]
