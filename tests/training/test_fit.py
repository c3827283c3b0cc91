import csv
import dataclasses
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.samplers import EpochSampler
from delta_transfer.errors import DataError, UserError
from delta_transfer.methods import Delta
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.regularizer import Regularizer
from delta_transfer.training import trainer as trainer_module
from delta_transfer.training.checkpoint_callbacks import CheckpointInterval
from delta_transfer.training.fit import fit
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.trainer import (
    FitConfig,
    epochs_per_validation,
    make_trainer,
    quiet,
)
from tests.networks import ConvNet, conv_net, hooks_of

OPTIONS: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.01,
    "head_lr": 0.01,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_ratio": 0.15,
}


class Samples(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Bright, middling and dark noise; takes note of what is asked for."""

    def __init__(self, count: int = 12, *, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = [i % 3 for i in range(count)]
        noise = torch.randn(count, 3, 8, 8, generator=generator)
        self.inputs = noise + torch.tensor(self.labels).view(-1, 1, 1, 1) - 1.0
        self.shift = shift
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index = key
        if isinstance(key, tuple):
            self.asked.append(key)
            index = key[1]
        return self.inputs[index], (self.labels[index] + self.shift) % 3


def plan(folder: Path, *, epochs: int = 2, batch_size: int = 4, shift: int = 0) -> FitConfig:
    """Training on samples whose labels are shifted, validation on the right ones."""
    (folder / "checkpoints").mkdir(parents=True)
    train = Samples(shift=shift)
    return FitConfig(
        train_dataloader=DataLoader(
            train, batch_size=batch_size, sampler=EpochSampler(len(train), seed=0)
        ),
        val_dataloader=DataLoader(Samples(), batch_size=5),
        epochs=epochs,
        folder=folder,
        accelerator="cpu",
    )


def run(
    network: nn.Module,
    what: FitConfig,
    *,
    regularizer: Regularizer | None = None,
    loss: Any = F.cross_entropy,
    callbacks: list[lightning.Callback] | None = None,
    **options: Any,
) -> None:
    fit(
        network,
        regularizer or Regularizer(network, None, []),
        what,
        loss=loss,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(**{**OPTIONS, **options}),
        callbacks=callbacks or [],
    )


def network_of(checkpoint: Path) -> dict[str, Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "network."
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def figures(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Epoch -> (accuracy, loss, calibrated loss) on validation."""
    names = ("val_accuracy", "val_loss", "val_calibrated_loss")
    with (folder / "metrics.csv").open() as file:
        return {
            int(float(row["epoch"])): tuple(float(row[name]) for name in names)
            for row in csv.DictReader(file)
            if row["val_accuracy"]
        }


def evaluate(network: nn.Module) -> tuple[float, float, float]:
    data = Samples()
    labels = torch.tensor(data.labels)
    with torch.no_grad():
        logits = network.eval()(data.inputs)
    right = (logits.argmax(dim=1) == labels).float().mean()
    temperatures = torch.logspace(-1.301, 1.301, 2001)  # 1/20 to 20
    calibrated = min(F.cross_entropy(logits / t, labels).item() for t in temperatures)
    return right.item(), F.cross_entropy(logits, labels).item(), calibrated


@pytest.mark.parametrize("shift", [0, 1])
def test_the_network_is_left_with_the_weights_after_its_last_epoch(tmp_path, shift):
    network = conv_net()
    run(network, plan(tmp_path, epochs=4, shift=shift), lr=0.02, head_lr=0.1)
    found = figures(tmp_path)
    assert list(found) == [0, 1, 2, 3, 4]
    assert evaluate(network) == pytest.approx(found[4], rel=1e-4)
    last = network_of(tmp_path / "checkpoints" / "last.ckpt")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, last[name])


def test_many_epochs_are_validated_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "NUM_VALIDATIONS", 2)
    run(conv_net(), plan(tmp_path, epochs=6))
    assert list(figures(tmp_path)) == [0, 3, 6]


def test_about_thirty_epochs_are_validated_and_the_last_is_one_of_them():
    for epochs in range(1, 500):
        every = epochs_per_validation(epochs)
        assert epochs % every == 0
        assert epochs // every >= min(epochs, 30)
    assert epochs_per_validation(30) == 1
    assert epochs_per_validation(300) == 10


def test_the_figures_of_epoch_zero_are_those_of_the_start(tmp_path):
    start = evaluate(conv_net())
    run(conv_net(), plan(tmp_path, epochs=1))
    assert figures(tmp_path)[0] == pytest.approx(start, rel=1e-4)


def test_batches_come_in_the_order_of_seed_and_epoch(tmp_path):
    what = plan(tmp_path, epochs=3)
    run(conv_net(), what)
    sampler = EpochSampler(12, seed=0)
    expected = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert what.train_dataloader.dataset.asked == expected


def test_gradients_are_clipped_at_norm_one(tmp_path):
    network = conv_net()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    run(
        network,
        plan(tmp_path, epochs=1, batch_size=12),  # a single step, of SGD at rate 1
        loss=lambda logits, targets: 1000 * F.cross_entropy(logits, targets),
        lr=1.0,
        head_lr=1.0,
    )
    last = network_of(tmp_path / "checkpoints" / "last.ckpt")
    moved = torch.stack([(last[name] - p).norm() for name, p in start.items()]).norm()
    assert moved.item() == pytest.approx(1.0, rel=1e-3)


def test_small_gradients_are_not_scaled(tmp_path):
    network = conv_net()
    network.drop.p = 0.0
    regularizer = Regularizer(network, None, [])
    data = Samples()
    with regularizer:
        loss = 1e-3 * F.cross_entropy(network.train()(data.inputs), torch.tensor(data.labels))
    (slope,) = torch.autograd.grad(loss, [network.fc.bias])
    start = network.fc.bias.detach().clone()
    run(
        network,
        plan(tmp_path, epochs=1, batch_size=12),
        loss=lambda logits, targets: 1e-3 * F.cross_entropy(logits, targets),
        lr=1.0,
        head_lr=1.0,
    )
    last = network_of(tmp_path / "checkpoints" / "last.ckpt")
    assert torch.allclose(last["fc.bias"], start - slope, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_norm_statistics_are_the_regularizers_business(tmp_path, batch_norm, training):
    network, start = conv_net().train(training), conv_net().state_dict()
    regularizer = Regularizer(network, None, [], batch_norm=batch_norm)
    run(network, plan(tmp_path), regularizer=regularizer)
    last = network_of(tmp_path / "checkpoints" / "last.ckpt")
    for name in ("norm1.running_mean", "norm2.running_var"):
        assert torch.equal(last[name], start[name]) == (batch_norm == "frozen")


class Failing(lightning.Callback):
    def on_train_batch_end(self, *arguments: object) -> None:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_given_back_without_hooks(tmp_path, fails):
    source, network = conv_net(), conv_net()
    regularizer = Regularizer(network, source, [Delta(taps=["conv2"], strength=1.0)])
    regularizer.calibrate([Samples().inputs])
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            run(network, plan(tmp_path), regularizer=regularizer, callbacks=[Failing()])
    else:
        run(network, plan(tmp_path), regularizer=regularizer)
    assert hooks_of(network) == hooks_of(source) == 0


def test_the_terms_are_logged_by_name_and_for_tensorboard(tmp_path):
    source, network = conv_net(), conv_net()
    regularizer = Regularizer(network, source, [Delta(taps=["conv2"], strength=1.0)])
    regularizer.calibrate([Samples().inputs])
    run(network, plan(tmp_path), regularizer=regularizer)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"epoch", "lr", "train_loss", "train_task", "train_delta", "val_loss"} <= set(header)
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_equal_fits_give_equal_weights(tmp_path):
    found = []
    for name in ("first", "second"):
        network = ConvNet()
        network.load_state_dict(conv_net().state_dict())
        network.drop.p = 0.0
        run(network, plan(tmp_path / name), optimizer="adamw")
        found.append(network_of(tmp_path / name / "checkpoints" / "last.ckpt"))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name])


def test_quiet_hides_what_lightning_says_and_gives_warnings_and_logs_back():
    log = logging.getLogger("lightning.pytorch")
    level, filters = log.level, list(warnings.filters)
    with quiet():
        assert not log.isEnabledFor(logging.WARNING)
        warnings.warn("The 'train_dataloader' does not have many workers", stacklevel=1)
        with pytest.raises(UserWarning, match="of ours"):
            warnings.warn("of ours", stacklevel=1)
    assert log.level == level
    assert warnings.filters == filters


def test_the_trainer_has_no_progress_bar_where_there_is_no_terminal(tmp_path):
    trainer = make_trainer(plan(tmp_path), [])
    assert trainer.progress_bar_callback is None
    assert trainer.gradient_clip_val == 1.0


def test_a_fit_without_validation_ends_with_the_same_weights(tmp_path):
    found = []
    for validates in (True, False):
        network, what = conv_net(), plan(tmp_path / str(validates), epochs=2)
        network.drop.p = 0.0
        if not validates:
            what = dataclasses.replace(what, val_dataloader=None)
        run(network, what, schedule="cosine")
        found.append(network.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert "val_loss" not in (tmp_path / "False" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("factor", "message"),
    [(math.nan, "task loss is nan"), (math.inf, "task loss is inf"), (1e9, "task loss is 1")],
)
def test_a_loss_that_leaves_all_bounds_ends_the_fit_and_leaves_what_was_saved(
    tmp_path, factor, message
):
    network, steps = conv_net(), []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        steps.append(len(steps))
        wrong = torch.is_grad_enabled() and len(steps) > 8  # 3 steps an epoch and 3 validations
        return F.cross_entropy(logits, targets) * (factor if wrong else 1.0)

    what = dataclasses.replace(
        plan(tmp_path, epochs=3), checkpoint_interval=CheckpointInterval(steps=1)
    )
    with pytest.raises(UserError, match=message) as caught:
        run(network, what, loss=loss)
    for part in ("epoch 2", "smaller `lr` than 0.01"):
        assert part in str(caught.value)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert all(tensor.isfinite().all() for tensor in network_of(last).values())
    assert hooks_of(network) == 0


class LosesAnImage(Samples):
    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        if isinstance(key, tuple) and key[0] == 1:
            raise ImageError("cannot read 'a.png': replace it")
        return super().__getitem__(key)


def test_an_image_that_a_worker_cannot_read_is_reported_without_a_traceback(tmp_path):
    what, train = plan(tmp_path), LosesAnImage()
    loader = DataLoader(
        train, batch_size=4, sampler=EpochSampler(len(train), seed=0), num_workers=1
    )
    with pytest.raises(DataError) as caught:
        run(conv_net(), dataclasses.replace(what, train_dataloader=loader))
    assert str(caught.value) == "cannot read 'a.png': replace it"


def test_a_large_loss_that_was_large_from_the_start_is_no_explosion(tmp_path):
    run(conv_net(), plan(tmp_path), loss=lambda x, y: 1e5 * F.cross_entropy(x, y))


def test_gradients_are_not_clipped_where_no_limit_is_set(tmp_path):
    network = conv_net()
    network.drop.p = 0.0
    start = network.fc.bias.detach().clone()
    what = dataclasses.replace(plan(tmp_path, epochs=1, batch_size=12), grad_clip=None)
    run(
        network,
        what,
        loss=lambda logits, targets: 1000 * F.cross_entropy(logits, targets),
        lr=1.0,
        head_lr=1.0,
    )
    last = network_of(tmp_path / "checkpoints" / "last.ckpt")
    assert (last["fc.bias"] - start).norm() > 10


class Interrupting(lightning.Callback):
    def on_train_batch_end(self, *arguments: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("validates", [True, False])
def test_an_interruption_is_one(tmp_path, validates):
    """Lightning makes it an exit of the program."""
    network, what = conv_net(), plan(tmp_path)
    if not validates:
        what = dataclasses.replace(what, val_dataloader=None)
    with pytest.raises(KeyboardInterrupt):
        run(network, what, callbacks=[Interrupting()])
    assert hooks_of(network) == 0
