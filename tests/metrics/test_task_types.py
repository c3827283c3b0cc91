"""Losses, predictions and scores of task types against numbers by hand."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from delta_transfer.attention.estimators.scorer import per_sample_losses
from delta_transfer.metrics.task_types import (
    Multiclass,
    MultilabelBinary,
    Regression,
    TaskType,
    task_type_from_dict,
    task_type_to_dict,
)

NAN = math.nan
EVERY = (
    Multiclass(),
    MultilabelBinary(labelled_fraction=0.5),
    Regression(mean=(1.0,) * 3, std=(2.0,) * 3),
)


def test_binary_loss_ignores_missing_labels() -> None:
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    targets = torch.tensor([[1.0, NAN], [0.0, 1.0]])
    parts = [math.log1p(math.exp(-1)), math.log1p(math.exp(0.5)), math.log1p(math.exp(-3))]
    loss = MultilabelBinary(labelled_fraction=0.75).loss(logits, targets)
    assert loss.item() == pytest.approx(sum(parts) / 3)


def test_a_missing_label_has_no_gradient() -> None:
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    MultilabelBinary().loss(logits, torch.tensor([[1.0, NAN]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[0, 0] != 0


def test_roc_auc_is_the_share_of_ordered_pairs_over_targets_with_both_labels() -> None:
    predictions = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.5], [0.4, 0.3, 0.5], [0.4, 0.9, 0.5]])
    targets = torch.tensor([[1, 0, 1], [0, NAN, 1], [1, 1, 1], [0, 1, 1]])
    # First: of the pairs (1 above 0) three are in order and one is a tie; second: two of two.
    expected = ((3 + 0.5) / 4 + 1) / 2
    assert MultilabelBinary().score(predictions, targets, "roc_auc") == pytest.approx(expected)


def test_roc_auc_of_a_single_label_is_nan() -> None:
    assert math.isnan(MultilabelBinary().score(torch.rand(3, 1), torch.ones(3, 1), "roc_auc"))


def test_regression_is_in_units_of_the_training_targets() -> None:
    task_type = Regression(mean=(10.0, 0.0), std=(2.0, 0.5))
    logits = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    predictions = task_type.predictions(logits)
    assert torch.equal(predictions, torch.tensor([[12.0, 0.5], [10.0, -0.5]]))
    targets = torch.tensor([[10.0, 0.5], [8.0, NAN]])
    assert task_type.loss(logits, targets).item() == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert task_type.score(predictions, targets, "rmse") == pytest.approx((2 + 0) / 2)


@pytest.mark.parametrize("task_type", EVERY)
def test_logits_invert_predictions(task_type: TaskType) -> None:
    predictions = task_type.predictions(
        torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    )
    assert torch.allclose(
        task_type.predictions(task_type.logits(predictions)), predictions, atol=1e-6
    )


def test_held_out_losses_do_not_depend_on_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 2, generator=generator)
    targets = (logits + torch.randn(40, 2, generator=generator) > 0).float()
    targets[3, 1] = NAN
    task_type = MultilabelBinary()
    losses = task_type.held_out_losses(logits, targets)
    assert losses.shape == (40,)
    assert torch.allclose(losses, task_type.held_out_losses(5 * logits, targets), atol=1e-4)
    known = ~torch.isnan(targets)
    plain = F.binary_cross_entropy_with_logits(logits[known], targets[known], reduction="sum") / 80
    assert float(losses.mean()) < float(plain)


def test_accuracy_and_mean_class_accuracy() -> None:
    predictions = F.one_hot(torch.tensor([0, 0, 0, 1]), 3).float()
    labels = torch.tensor([0, 0, 1, 1])
    assert Multiclass().score(predictions, labels, "accuracy") == 0.75
    assert (
        Multiclass().score(predictions[[0, 1, 2]], labels[[0, 1, 2]], "mean_class_accuracy") == 0.5
    )


def test_a_missing_value_has_no_gradient_and_leaves_others_intact() -> None:
    logits = torch.tensor([[1.0, -2.0]], requires_grad=True)
    Regression(mean=(0.0, 1.0), std=(1.0, 2.0)).loss(logits, torch.tensor([[3.0, NAN]])).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-2.0, 0.0]]  # of (1 - 3)^2 / 2


@pytest.mark.parametrize("task_type", EVERY)
def test_json_round_trip(task_type: TaskType) -> None:
    assert task_type_from_dict(json.loads(json.dumps(task_type_to_dict(task_type)))) == task_type


@pytest.mark.parametrize("task_type", EVERY[1:])
def test_per_sample_losses_are_those_of_batches_of_one(
    task_type: TaskType,
) -> None:
    """In a single call: attention estimators need them for each channel of each sample."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=generator)
    targets = torch.randint(2, (6, 3), generator=generator).float()
    targets[1, 2] = targets[4, 0] = NAN
    expected = [task_type.loss(logits[i : i + 1], targets[i : i + 1]) for i in range(6)]
    calls = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(0)
        return task_type.loss(logits, targets)

    found = per_sample_losses(loss, logits, targets)
    assert torch.allclose(found, torch.stack(expected))
    assert len(calls) == 1
    assert torch.allclose(found.mean(), task_type.loss(logits, targets))
