import csv
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from delta_transfer.training import MeasureDrift, RedrawHead
from delta_transfer.training import callbacks as module
from delta_transfer.training.callbacks import KeepBest
from tests.networks import conv_net, hooks_of, moved


class FakeTrainer:
    """What the callbacks ask a trainer for."""

    def __init__(self, epochs: int = 5) -> None:
        self.state = SimpleNamespace(fn="validate")
        self.current_epoch = 0
        self.max_epochs = epochs
        self.callback_metrics: dict[str, torch.Tensor] = {}
        self.saved: list[tuple[str, bool]] = []

    def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
        self.saved.append((path.name, weights_only))

    def enter(self, epoch: int) -> None:
        """Epoch 0 is validated before the fit."""
        if epoch:
            self.state.fn, self.current_epoch = "fit", epoch - 1


def kept(losses: list[float], folder: Path) -> tuple[int, list[int]]:
    """The best epoch of calibrated losses by epoch, and the epochs that were written."""
    trainer, keep = FakeTrainer(), KeepBest(folder)
    written = []
    for epoch, loss in enumerate(losses):
        trainer.enter(epoch)
        trainer.callback_metrics = {
            "val_accuracy": torch.tensor(0.5 / (epoch + 1)),
            "val_loss": torch.tensor(epoch + 1.0),
            "val_calibrated_loss": torch.tensor(loss),
        }
        before = len(trainer.saved)
        keep.on_validation_end(trainer, None)
        if len(trainer.saved) > before:
            assert trainer.saved[before:] == [("best.ckpt", True)]
            written.append(epoch)
    return keep.best_epoch, written


@pytest.mark.parametrize(
    ("losses", "best", "written"),
    [
        ([1.0, 0.5, 0.75], 1, [0, 1]),
        ([1.0, 1.0], 0, [0]),  # a tie: the earlier one
        ([0.5, 1.0, 0.75], 0, [0]),  # the start is a candidate
        ([9.0, 8.0], 1, [0, 1]),
        ([1.0, math.nan, math.inf], 0, [0]),
        ([math.nan, 1.0], 1, [0, 1]),
        ([math.nan, math.nan], 0, [0]),
    ],
)
def test_the_epoch_with_the_lowest_calibrated_loss_is_kept(tmp_path, losses, best, written):
    assert kept(losses, tmp_path) == (best, written)


def test_each_epoch_is_reported(tmp_path, caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    kept([0.5, 0.75], tmp_path)
    assert [record.message for record in caplog.records] == [
        "epoch 0 of 5: validation accuracy 50.0%, loss 1.000 (calibrated 0.500), best so far",
        "epoch 1 of 5: validation accuracy 25.0%, loss 2.000 (calibrated 0.750)",
    ]


def test_the_last_state_is_saved_with_all_that_resuming_needs(tmp_path):
    trainer = FakeTrainer()
    KeepBest(tmp_path).on_train_end(trainer, None)
    assert trainer.saved == [("last.ckpt", False)]


def test_the_last_state_is_saved_at_most_once_a_minute_until_the_end(tmp_path, monkeypatch):
    """An epoch may be a single step, and a state hundreds of megabytes."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    trainer, keep = FakeTrainer(), KeepBest(tmp_path)
    saved = []
    for now[0] in range(0, 200, 25):
        keep.on_train_epoch_end(trainer, None)
        saved.append(len(trainer.saved))
    assert saved == [0, 0, 0, 1, 1, 1, 2, 2]


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
    trainer = FakeTrainer()
    drift.on_validation_end(trainer, None)
    target.load_state_dict(moved(target).state_dict())
    target.train()
    target.norm1.eval()
    trainer.enter(3)
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
    redraw = RedrawHead(head, cycles=3, generator=torch.Generator().manual_seed(0))
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
