import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_sample_weight

from delta_transfer.config.train import TrainOptions
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.preparation.loss import resolve_class_weights, task_loss

LABELS = [0] * 9 + [1] * 2 + [2]
LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor(LABELS)


def loss_of(labels=LABELS, **options):
    return task_loss(
        TrainOptions(data="x", **options).resolve(), Multiclass(), labels, num_classes=3
    )


def slow(targets, *, weights=(1.0, 1.0, 1.0), smoothing=0.0) -> float:
    """Sample by sample, class by class, of targets as probabilities."""
    total = 0.0
    for row, target in zip(LOGITS.double().numpy(), np.asarray(targets), strict=True):
        logs = row - np.log(np.exp(row).sum())
        for k in range(3):
            share = (1 - smoothing) * target[k] + smoothing / 3
            total -= weights[k] * share * logs[k]
    return total / len(LOGITS)


def test_by_default_it_is_plain_cross_entropy():
    for loss in (loss_of(), loss_of(class_weights="sampler")):
        assert torch.equal(loss(LOGITS, TARGETS), F.cross_entropy(LOGITS, TARGETS))


def test_balanced_weighs_samples_as_scikit_learn_does():
    weights = torch.tensor(compute_sample_weight("balanced", LABELS), dtype=torch.float32)
    expected = (weights * F.cross_entropy(LOGITS, TARGETS, reduction="none")).mean()
    assert loss_of(class_weights="balanced")(LOGITS, TARGETS).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("way", ["none", "balanced"])
def test_indices_and_probabilities_are_as_by_hand(way, smoothing):
    loss = loss_of(class_weights=way, label_smoothing=smoothing)
    weights = [12 / (3 * n) for n in (9, 2, 1)] if way == "balanced" else [1.0] * 3
    sure = torch.eye(3)[TARGETS]
    mixed = 0.7 * sure + 0.3 * sure.roll(1, 0)
    for targets, given in ((sure, TARGETS), (sure, sure), (mixed, mixed)):
        expected = slow(targets, weights=weights, smoothing=smoothing)
        assert loss(LOGITS, given).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_counts_by_its_samples():
    loss = loss_of(class_weights="balanced")
    parts = [loss(LOGITS[i : i + 4], TARGETS[i : i + 4]) for i in (0, 4, 8)]
    assert sum(parts).item() / 3 == pytest.approx(loss(LOGITS, TARGETS).item(), rel=1e-6)


def test_auto_balances_classes_of_very_different_sizes():
    config = TrainOptions(data="x", class_weights="auto").resolve()
    assert resolve_class_weights(config, [0] * 29 + [1] * 10) == "none"
    assert resolve_class_weights(config, [0] * 30 + [1] * 10) == "balanced"
    few = loss_of([0] * 29 + [1] * 10, class_weights="auto")
    assert few(LOGITS, TARGETS) == loss_of()(LOGITS, TARGETS)
    loss = loss_of(class_weights="auto")
    assert loss(LOGITS, TARGETS) == loss_of(class_weights="balanced")(LOGITS, TARGETS)


def test_it_is_as_precise_as_the_logits():
    loss = loss_of(class_weights="balanced")
    for dtype in (torch.float64, torch.bfloat16):
        assert loss(LOGITS.to(dtype), TARGETS).dtype == dtype
