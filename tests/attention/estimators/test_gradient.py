import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delta_transfer.attention.estimators.gradient import FirstOrderScorer
from tests import reference
from tests.networks import conv_net, hooks_of

TAPS = ("conv1", "norm1", "conv3")


def data(count=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, 8, 8, generator=generator, dtype=dtype)
    return x, torch.arange(count) % 3


def frozen(net):
    return net.eval().requires_grad_(False)


def test_scores_are_those_of_the_reference_for_each_sample():
    net, (x, y) = frozen(conv_net().double()), data()
    found = FirstOrderScorer(net, taps=TAPS, loss=F.cross_entropy)(x, y)
    outputs = reference.hooked(net, TAPS, x)[1]
    for tap in TAPS:
        for i in range(len(x)):
            expected = reference.gradient_scores(
                net, x[i : i + 1], y[i : i + 1], tap, 1, F.cross_entropy
            )
            assert found.scores[tap][i].tolist() == pytest.approx(expected, abs=1e-12)
        positions = outputs[tap].flatten(2).transpose(1, 2)
        assert torch.allclose(found.features[tap], positions)
    assert hooks_of(net) == 0


def test_one_scorer_takes_batch_after_batch_and_keeps_no_graph():
    net, (x, y) = frozen(conv_net().double()), data()
    scorer = FirstOrderScorer(net, taps=TAPS, loss=F.cross_entropy)
    whole = scorer(x, y)
    for size in (1, 2, 5):
        parts = [scorer(*part) for part in zip(x.split(size), y.split(size), strict=True)]
        for tap in TAPS:
            joined = torch.cat([part.scores[tap] for part in parts])
            assert torch.allclose(joined, whole.scores[tap], atol=1e-12)
            assert not joined.requires_grad
            assert not parts[0].features[tap].requires_grad


class Windows(nn.Module):
    """A network that cuts each image into four windows, the rows of its first tap."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 5)
        self.mix = nn.Linear(5, 6)

    def forward(self, x):
        cut = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1)
        windows = torch.tanh(self.body(cut.reshape(-1, 16, 3)))
        return self.mix(windows.reshape(len(x), -1, 5)).square().mean(dim=1)


def test_rows_that_are_no_samples_are_told_apart():
    torch.manual_seed(0)
    net, (x, y) = frozen(Windows().double()), data()
    seen = []
    found = FirstOrderScorer(net, taps=["body"], loss=F.cross_entropy)(x, y, progress=seen.append)
    assert found.features["body"].shape == (20, 16, 5)
    assert sum(seen) == 5 * 5
    for i in range(len(x)):
        one = x[i : i + 1], y[i : i + 1]
        expected = reference.gradient_scores(net, *one, "body", 2, F.cross_entropy)
        assert found.scores["body"][i].tolist() == pytest.approx(expected, abs=1e-12)


def test_rows_are_samples_where_there_are_as_many():
    torch.manual_seed(0)
    net = frozen(nn.Sequential(nn.Flatten(), nn.Linear(192, 7), nn.Tanh(), nn.Linear(7, 3)))
    x, y = data(dtype=torch.float32)
    found = FirstOrderScorer(net, taps=["1"], loss=F.cross_entropy)(x, y)
    assert found.features["1"].shape == found.scores["1"].shape == (5, 7)
    expected = reference.gradient_scores(net, x, y, "1", 1, F.cross_entropy)
    assert found.scores["1"].mean(dim=0).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


class Irreversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("the backward pass went on beyond the first tap")


class Watched(nn.Module):
    def forward(self, x):
        return Irreversible.apply(x)


def test_one_pass_forward_and_one_back_to_the_first_tap():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), Watched(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)
    )
    calls = []
    net.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    x, y = data(dtype=torch.float32)
    pairs = []
    # Inputs that want a gradient would have the pass go on to them.
    scorer = FirstOrderScorer(frozen(net), taps=["2", "3"], loss=F.cross_entropy)
    scorer(x.requires_grad_(), y, progress=pairs.append)
    assert len(calls) == 1
    assert calls[0].is_contiguous(memory_format=torch.channels_last)
    assert pairs == [5 * 10]
    assert x.grad is None


def test_a_tap_without_influence_scores_zero():
    net, (x, y) = frozen(conv_net().double()), data()
    net.aside = frozen(nn.Conv2d(3, 5, 1).double())

    def forward(x, plain=net.forward):
        net.aside(x)
        return plain(x)

    net.forward = forward
    found = FirstOrderScorer(net, taps=["conv1", "aside"], loss=F.cross_entropy)(x, y)
    assert found.scores["aside"].abs().max() == 0
    assert found.scores["conv1"].abs().max() > 0


def test_half_precision_is_summed_in_float32():
    net, (x, y) = frozen(conv_net()), data(dtype=torch.float32)
    expected = FirstOrderScorer(net, taps=["conv3"], loss=F.cross_entropy)(x, y)
    half = copy.deepcopy(net).bfloat16()
    found = FirstOrderScorer(half, taps=["conv3"], loss=F.cross_entropy)(x.bfloat16(), y)
    assert found.scores["conv3"].dtype == found.features["conv3"].dtype == torch.float32
    scale = expected.scores["conv3"].abs().max()
    assert (found.scores["conv3"] - expected.scores["conv3"]).abs().max() < 0.1 * scale


def test_it_is_linear_in_the_loss():
    net, (x, y) = frozen(conv_net().double()), data()

    def twice(logits, targets):
        return 2 * F.cross_entropy(logits, targets)

    one = FirstOrderScorer(net, taps=["norm1"], loss=F.cross_entropy)(x, y).scores["norm1"]
    assert torch.allclose(
        FirstOrderScorer(net, taps=["norm1"], loss=twice)(x, y).scores["norm1"], 2 * one
    )
