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
from delta_transfer.training.fit import fit
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.trainer import FitConfig, make_trainer, quiet
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
) -> int:
    fitted = fit(
        network,
        regularizer or Regularizer(network, None, []),
        what,
        loss=loss,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(**{**OPTIONS, **options}),
        callbacks=callbacks or [],
    )
    return fitted.epoch


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
def test_the_network_is_left_with_the_weights_of_its_best_epoch(tmp_path, shift):
    network = conv_net()
    best = run(network, plan(tmp_path, epochs=4, shift=shift), lr=0.02, head_lr=0.1)
    found = figures(tmp_path)
    assert list(found) == [0, 1, 2, 3, 4]
    assert best == min(found, key=lambda epoch: found[epoch][2])
    assert evaluate(network) == pytest.approx(found[best], rel=1e-4)


def test_the_figures_of_epoch_zero_are_those_of_the_start(tmp_path):
    start = evaluate(conv_net())
    run(conv_net(), plan(tmp_path, epochs=1))
    assert figures(tmp_path)[0] == pytest.approx(start, rel=1e-4)


def test_what_learns_the_wrong_labels_is_put_back_to_its_start(tmp_path):
    network = conv_net()
    with torch.no_grad():  # a start that knows the right labels: the brightness decides
        run(network, plan(tmp_path / "right", epochs=8), lr=0.02, head_lr=0.1)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert run(network, plan(tmp_path / "wrong", shift=1), lr=0.5, head_lr=0.5) == 0
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, start[name])
    last = network_of(tmp_path / "wrong" / "checkpoints" / "last.ckpt")
    assert not torch.equal(last["fc.weight"], start["fc.weight"])


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


class Snapshots(lightning.Callback):
    """The weights after each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        state = module.network.state_dict()
        self.weights.append({name: tensor.clone() for name, tensor in state.items()})


def test_a_fit_without_validation_ends_with_the_epoch_that_it_was_told(tmp_path):
    """The schedule is that of all epochs: the weights are those of the longer fit at that time."""
    seen, network = Snapshots(), ConvNet()
    start = conv_net().state_dict()
    network.load_state_dict(start)
    network.drop.p = 0.0
    run(network, plan(tmp_path / "all", epochs=4), callbacks=[seen], schedule="cosine")
    network.load_state_dict(start)
    what = dataclasses.replace(plan(tmp_path / "two", epochs=4), val_dataloader=None, stop_after=2)
    assert run(network, what, schedule="cosine") == 2
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, seen.weights[1][name])
    assert not torch.equal(seen.weights[1]["fc.weight"], seen.weights[3]["fc.weight"])


def test_what_was_said_of_the_validation_split_is_kept_for_each_epoch(tmp_path):
    network = conv_net()
    fitted = fit(
        network,
        Regularizer(network, None, []),
        plan(tmp_path, epochs=3),
        loss=F.cross_entropy,
        head="fc",
        task_type=Multiclass(),
        optimizer_config=OptimizerConfig(**OPTIONS),
    )
    found = figures(tmp_path)
    assert len(fitted.val_outputs) == len(found) == 4
    for epoch, (logits, targets) in enumerate(fitted.val_outputs):
        assert targets.tolist() == Samples().labels
        assert F.cross_entropy(logits, targets).item() == pytest.approx(found[epoch][1], rel=1e-4)


@pytest.mark.parametrize(
    ("factor", "message"),
    [(math.nan, "task loss is nan"), (math.inf, "task loss is inf"), (1e9, "task loss is 1")],
)
def test_a_loss_that_leaves_all_bounds_ends_the_fit_and_leaves_the_best_so_far(
    tmp_path, factor, message
):
    network, steps = conv_net(), []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        steps.append(len(steps))
        wrong = torch.is_grad_enabled() and len(steps) > 8  # 3 steps an epoch and 3 validations
        return F.cross_entropy(logits, targets) * (factor if wrong else 1.0)

    with pytest.raises(UserError, match=message) as caught:
        run(network, plan(tmp_path, epochs=3), loss=loss)
    best = tmp_path / "checkpoints" / "best.ckpt"
    for part in ("epoch 2", "smaller `lr` than 0.01", str(best)):
        assert part in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in network_of(best).values())
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
    best = tmp_path / "checkpoints" / "best.ckpt"
    said = f"cannot read 'a.png': replace it; best weights so far: {best}"
    assert str(caught.value) == said


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


def test_an_interruption_of_a_refit_is_one(tmp_path):
    network = conv_net()
    with pytest.raises(KeyboardInterrupt):
        run(
            network,
            dataclasses.replace(plan(tmp_path), val_dataloader=None),
            callbacks=[Interrupting()],
        )
    assert hooks_of(network) == 0


def test_an_interruption_is_one_and_leaves_the_best_so_far(tmp_path):
    network = conv_net()
    with pytest.raises(KeyboardInterrupt):  # which Lightning makes an exit of the program
        run(network, plan(tmp_path), callbacks=[Interrupting()])
    assert network_of(tmp_path / "checkpoints" / "best.ckpt")
    assert hooks_of(network) == 0
