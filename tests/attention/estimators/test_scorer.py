import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delta_transfer.attention.estimators.scorer import (
    BatchScores,
    concatenate_scores,
    per_sample_losses,
    to_fast_memory_format,
)


def data(count=6, classes=4):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(count) % classes


def smoothed(logits, targets):
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


def with_numbers(logits, targets):
    """What `torch.vmap` does not take."""
    return logits[:, targets[0].item()].square().mean()


def with_a_mask(logits, targets):
    return logits[logits > 0].sum() / len(logits)


@pytest.mark.parametrize(
    "loss",
    [F.cross_entropy, nn.CrossEntropyLoss(), smoothed, F.multi_margin_loss, with_numbers],
    ids=["function", "module", "smoothed", "margin", "numbers"],
)
def test_losses_are_those_of_batches_of_one(loss):
    logits, targets = data()
    logits.requires_grad_()
    found = per_sample_losses(loss, logits, targets)
    expected = [loss(logits[i : i + 1], targets[i : i + 1]) for i in range(6)]
    assert found.tolist() == pytest.approx([value.item() for value in expected])
    assert loss(logits, targets).item() == pytest.approx(found.mean().item()) or (
        loss is with_numbers
    )
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    (other,) = torch.autograd.grad(torch.stack(expected).sum(), logits)
    assert torch.allclose(gradient, other)


def test_losses_of_other_targets():
    logits, _ = data()
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    found = per_sample_losses(F.mse_loss, logits, targets)
    assert torch.allclose(found, (logits - targets).square().mean(dim=1))
    found = per_sample_losses(F.cross_entropy, logits, targets)
    assert torch.allclose(found, -(targets * logits.log_softmax(dim=1)).sum(dim=1))
    masked = per_sample_losses(with_a_mask, logits, targets)
    assert torch.allclose(masked, logits.relu().sum(dim=1))


def test_weights_of_classes_cancel_in_a_batch_of_one():
    logits, targets = data()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([9.0, 1, 1, 1], dtype=torch.float64))
    plain = F.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(per_sample_losses(weighted, logits, targets), plain)
    assert not torch.isclose(weighted(logits, targets), plain.mean())


def test_errors_of_a_loss_come_through_and_a_loss_that_is_no_scalar_is_one():
    class Problem(Exception):
        pass

    def failing(logits, targets):
        raise Problem

    with pytest.raises(Problem):
        per_sample_losses(failing, *data())
    with pytest.raises(ValueError, match=r"must be a scalar, got shape \(1,\)"):
        per_sample_losses(nn.CrossEntropyLoss(reduction="none"), *data())


def test_images_are_laid_out_channels_last_and_other_inputs_are_left_alone():
    images = torch.randn(2, 3, 4, 5)
    found = to_fast_memory_format(images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images)
    assert to_fast_memory_format(found) is found
    rows = torch.randn(2, 3)
    assert to_fast_memory_format(rows) is rows
    assert to_fast_memory_format(rows, torch.device("meta")).device.type == "meta"
    moved = to_fast_memory_format(images, torch.device("meta"))
    assert moved.device.type == "meta"
    assert moved.is_contiguous(memory_format=torch.channels_last)


def test_parts_are_joined_sample_by_sample():
    def part(start, stop):
        rows = torch.arange(start, stop).float().unsqueeze(1)
        return BatchScores(scores={"a": rows, "b": -rows}, features={"a": 2 * rows, "b": rows})

    found = concatenate_scores([part(0, 2), part(2, 3), part(3, 5)])
    assert found.scores["a"].flatten().tolist() == [0, 1, 2, 3, 4]
    assert found.scores["b"].flatten().tolist() == [0, -1, -2, -3, -4]
    assert found.features["a"].flatten().tolist() == [0, 2, 4, 6, 8]
