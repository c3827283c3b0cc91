"""Which epoch is kept, and how it is said."""

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from delta_transfer.metrics.task_types import MULTICLASS
from delta_transfer.training.checkpoint_callbacks import SaveBest
from delta_transfer.training.checkpoints import AtomicCheckpointIO, read_checkpoint


def trainer_in(epoch: int, loss: float, network: torch.nn.Module) -> SimpleNamespace:
    """What the callback asks a trainer for; epoch 0 is validated before the fit."""
    return SimpleNamespace(
        state=SimpleNamespace(fn="fit" if epoch else "validate"),
        current_epoch=max(0, epoch - 1),
        max_epochs=5,
        strategy=SimpleNamespace(
            checkpoint_io=AtomicCheckpointIO(), lightning_module_state_dict=network.state_dict
        ),
        callback_metrics={
            "val_accuracy": torch.tensor(0.5 / (epoch + 1)),
            "val_loss": torch.tensor(epoch + 1.0),
            "val_calibrated_loss": torch.tensor(loss),
        },
    )


def kept(losses: list[float], folder: Path, *, again: bool = False) -> tuple[int, list[int]]:
    """The best epoch of calibrated losses by epoch, and the epochs that were written.

    If asked, each epoch is seen by another process, which goes on.
    """
    keep, network = SaveBest(folder), torch.nn.Linear(1, 1)
    network.task_type = MULTICLASS
    written: list[int] = []
    for epoch, loss in enumerate(losses):
        if again and epoch:
            keep = SaveBest(folder)
            assert keep.resume()
        torch.nn.init.constant_(network.weight, epoch)
        keep.on_validation_end(trainer_in(epoch, loss, network), network)
        best = read_checkpoint(folder / "best.ckpt")
        assert best is not None
        assert best["best_epoch"] == best["state_dict"]["weight"].item()
        if best["best_epoch"] == epoch:
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
@pytest.mark.parametrize("again", [False, True])
def test_the_epoch_with_the_lowest_calibrated_loss_is_kept(tmp_path, losses, best, written, again):
    assert kept(losses, tmp_path, again=again) == (best, written)


def test_without_a_best_epoch_there_is_nothing_to_go_on_with(tmp_path):
    assert not SaveBest(tmp_path).resume()
    (tmp_path / "best.ckpt").write_bytes(b"PK")
    assert not SaveBest(tmp_path).resume()


def test_each_epoch_is_reported(tmp_path, caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    kept([0.5, 0.75], tmp_path)
    assert [record.message for record in caplog.records] == [
        "epoch 0 of 5: validation accuracy 50.0%, loss 1.000 (calibrated 0.500), best so far",
        "epoch 1 of 5: validation accuracy 25.0%, loss 2.000 (calibrated 0.750)",
    ]
