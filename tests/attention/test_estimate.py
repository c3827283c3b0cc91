import copy
import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delta_transfer.attention import ESTIMATORS, estimate_attention
from delta_transfer.errors import UserError
from delta_transfer.features.probe import LinearProbe, collect_features, fit_probe
from delta_transfer.utils.module_state import weights_fingerprint
from tests import reference
from tests.networks import conv_net, hooks_of

TAPS = ("conv1", "norm1", "conv3")
METHODS = list(ESTIMATORS)
# Of up to eight samples all are scored exactly.
SLOW = {
    "gradient": reference.gradient_scores,
    "refined": reference.exact_scores,
    "exact": reference.exact_scores,
}


def data(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return x, torch.arange(count) % 3


def loader(x, y, size=3):
    return list(zip(x.split(size), y.split(size), strict=True))


def some_probe(outputs=3) -> LinearProbe:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(outputs, 6, generator=generator)
    return LinearProbe(weight, torch.randn(outputs, generator=generator), 1.0)


def head_of(probe: LinearProbe) -> nn.Linear:
    head = nn.Linear(6, len(probe.bias))
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        head.bias.copy_(probe.bias)
    return head


def same(found, expected, rel=1e-4):
    for tap in expected.taps:
        scale = expected.scores[tap].abs().max().item()
        difference = (found.scores[tap] - expected.scores[tap]).abs().max().item()
        assert difference <= rel * scale
        assert found.variance[tap].item() == pytest.approx(expected.variance[tap].item(), rel=1e-4)


# ------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_reference_sample_by_sample(method):
    net, (x, y) = conv_net(), data()
    net.train()  # eval mode is not the caller's business
    found = estimate_attention(net, loader(x, y), probe=some_probe(), taps=TAPS, estimator=method)
    with_probe = reference.with_head(net, "fc", head_of(some_probe()))
    assert found.taps == TAPS
    for tap in TAPS:
        expected = torch.tensor(SLOW[method](with_probe, x, y, tap, 1, F.cross_entropy))
        scale = expected.abs().max().item()
        assert (found.scores[tap] - expected).abs().max().item() < 1e-3 * scale
        outputs = reference.hooked(with_probe, [tap], x)[1][tap]
        variance = reference.variance([reference.maps(outputs.detach(), "NCHW")])
        assert found.variance[tap].item() == pytest.approx(variance, rel=1e-4)
        numpy = outputs.detach().numpy().astype(np.float64).var(axis=(0, 2, 3)).mean()
        assert found.variance[tap].item() == pytest.approx(numpy, rel=1e-4)
    assert (found.estimator, found.samples, found.temperature) == (method, 7, 5.0)
    assert found.source == weights_fingerprint(net, head="fc")


@pytest.mark.parametrize("method", METHODS)
def test_a_short_last_batch_counts_by_its_samples(method):
    """Defect 9: the mean is over samples, not over batches."""
    net, (x, y) = conv_net().double(), data(count=7)
    options = {"probe": some_probe(), "taps": TAPS, "estimator": method}
    whole = estimate_attention(net, loader(x.double(), y, 7), **options)
    for size in (1, 3, 6):
        same(estimate_attention(net, loader(x.double(), y, size), **options), whole, rel=1e-5)


@pytest.mark.parametrize("method", ["gradient", "exact"])
def test_the_order_of_the_samples_does_not_matter(method):
    net, (x, y) = conv_net().double(), data(count=11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5))
    options = {"probe": some_probe(), "taps": ["norm1", "conv3"], "estimator": method}
    one = estimate_attention(net, loader(x.double(), y, 4), **options)
    other = estimate_attention(net, loader(x.double()[order], y[order], 4), **options)
    same(other, one, rel=1e-9)
    for tap in one.taps:
        assert torch.allclose(other.standard_errors[tap], one.standard_errors[tap], rtol=1e-9)
        moves = one.scores[tap] != 0  # where no sample's loss grows, the first ones are named
        assert torch.equal(
            order[other.influential_samples[tap]][moves], one.influential_samples[tap][moves]
        )


@pytest.mark.parametrize("tokens", [False, True], ids=["NHWC", "tokens"])
@pytest.mark.parametrize("method", METHODS)
def test_channels_that_come_last(method, tokens):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 5)
            self.mix = nn.Linear(5, 6)
            self.fc = nn.Linear(6, 2)

        def forward(self, x):
            x = x.permute(0, 2, 3, 1)
            x = self.body(x.flatten(1, 2) if tokens else x)
            x = torch.tanh(self.mix(F.gelu(x)))
            return self.fc(x.mean(dim=1) if tokens else x.mean(dim=(1, 2)))

    torch.manual_seed(0)
    net, (x, y) = Last().eval(), data(count=4)
    probe = some_probe(outputs=3)
    found = estimate_attention(net, loader(x, y), probe=probe, taps="body", estimator=method)
    with_probe = reference.with_head(net, "fc", head_of(probe))
    expected = SLOW[method](with_probe, x, y, "body", 2 if tokens else 3, F.cross_entropy)
    assert found.scores["body"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_first_order_is_exact_where_the_loss_is_linear():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    x, y = data()

    def linear(logits, targets):
        return (logits[:, 0] * (targets + 1)).mean()

    options = {"probe": some_probe(outputs=1), "taps": "0", "loss": linear}
    exact = estimate_attention(net, loader(x, y), estimator="exact", **options)
    same(estimate_attention(net, loader(x, y), estimator="gradient", **options), exact)


def test_first_order_is_close_to_exact_on_a_real_loss():
    net, (x, y) = conv_net(), data(count=30)
    options = {"num_outputs": 3, "taps": ["conv3"]}
    exact, gradient = (
        estimate_attention(net, loader(x, y), estimator=method, **options).scores["conv3"]
        for method in ("exact", "gradient")
    )
    assert np.corrcoef(exact.numpy(), gradient.numpy())[0, 1] > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_a_tap_that_does_not_matter_has_uniform_attention(method):
    """Defect 9: no division by a standard deviation of zero."""
    net, (x, y) = conv_net(), data()
    nn.init.zeros_(net.conv1.weight)
    nn.init.zeros_(net.conv1.bias)  # its output is zero
    net.aside = nn.Conv2d(3, 5, 1)  # and this one's is not used

    def forward(x, plain=net.forward):
        net.aside(x)
        return plain(x)

    net.forward = forward
    found = estimate_attention(
        net, loader(x, y), probe=some_probe(), taps=["conv1", "aside"], estimator=method
    )
    assert found.attention["conv1"].tolist() == pytest.approx([1 / 4] * 4)
    assert found.attention["aside"].tolist() == pytest.approx([1 / 5] * 5)
    assert found.variance["conv1"].item() == 1.0  # a tap that is always zero has no scale


def test_the_temperature_sharpens():
    net, (x, y) = conv_net(), data()

    def attention(temperature):
        options = {"taps": "conv3", "estimator": "gradient", "temperature": temperature}
        found = estimate_attention(net, loader(x, y), probe=some_probe(), **options)
        return found.attention["conv3"]

    assert attention(0.5).max() > attention(5.0).max() > attention(500.0).max()
    assert attention(500.0).tolist() == pytest.approx([1 / 6] * 6, rel=0.02)


def test_a_probe_is_fitted_if_none_is_given():
    net, (x, y) = conv_net(), data(count=12)
    fitted = fit_probe(*collect_features(net, loader(x, y)), num_outputs=3, seed=4)
    options = {"taps": TAPS, "seed": 4, "estimator": "gradient"}
    given = estimate_attention(net, loader(x, y), probe=fitted, **options)
    same(estimate_attention(net, loader(x, y), num_outputs=3, **options), given)
    other = estimate_attention(net, loader(x, y), probe=some_probe(), **options)
    assert not torch.allclose(other.scores["conv3"], given.scores["conv3"])


def test_regression_and_auto_taps():
    net, (x, _) = conv_net(), data(count=8)
    y = x.mean(dim=(1, 2, 3)).unsqueeze(1)
    found = estimate_attention(net, loader(x, y), num_outputs=1, loss=F.mse_loss)
    assert all(scores.isfinite().all() for scores in found.scores.values())


@pytest.mark.parametrize("method", METHODS)
def test_no_gradients_of_weights_are_computed(method):
    net, (x, y) = conv_net(), data()

    def loss(logits, targets):
        assert not any(parameter.requires_grad for parameter in net.parameters())
        return F.cross_entropy(logits, targets)

    estimate_attention(net, loader(x, y), num_outputs=3, taps=TAPS, estimator=method, loss=loss)


@pytest.mark.parametrize("method", METHODS)
def test_frozen_networks_and_calls_without_gradients(method):
    net, (x, y) = conv_net(), data()
    options = {"probe": some_probe(), "taps": TAPS, "estimator": method}
    expected = estimate_attention(net, loader(x, y), **options)
    net.requires_grad_(False)
    with torch.no_grad():
        same(estimate_attention(net, loader(x, y), **options), expected)


def test_a_network_in_half_precision_is_summed_in_float32():
    net, (x, y) = conv_net(), data()
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": "gradient"}
    expected = estimate_attention(net, loader(x, y), **options).scores["conv3"]
    half = copy.deepcopy(net).bfloat16()
    found = estimate_attention(half, loader(x.bfloat16(), y), **options).scores["conv3"]
    assert found.dtype == torch.float32
    assert np.corrcoef(found.numpy(), expected.numpy())[0, 1] > 0.95


# ------------------------------------------------------------------------------------ samples


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_drawn_at_random_and_repeatably(method):
    net, (x, y) = conv_net(), data(count=20)
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": method, "samples": 6}

    def drawn(seed):
        return estimate_attention(net, loader(x, y), seed=seed, **options)

    found = drawn(0)
    assert found.samples == 6
    same(drawn(0), found)
    assert not torch.equal(drawn(1).scores["conv3"], found.scores["conv3"])
    first = estimate_attention(net, loader(x[:6], y[:6]), **options)
    assert not torch.allclose(first.scores["conv3"], found.scores["conv3"])
    # They are those that the generator picks, and no others.
    picked = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:6].sort().values
    alone = estimate_attention(net, loader(x[picked], y[picked]), **options)
    same(alone, found)


def test_more_samples_than_there_are_is_all_of_them():
    net, (x, y) = conv_net(), data()
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": "gradient"}
    found = estimate_attention(net, loader(x, y), samples=100, **options)
    assert found.samples == 7
    same(found, estimate_attention(net, loader(x, y), **options))


# ------------------------------------------------------------------------- what else it says


def per_sample(net, x, y, tap):
    """First-order scores `[N, C]`, from the reference."""
    with_probe = reference.with_head(net, "fc", head_of(some_probe()).to(x.dtype))
    rows = [
        reference.gradient_scores(with_probe, *one, tap, 1, F.cross_entropy)
        for one in zip(x.split(1), y.split(1), strict=True)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def test_refined_is_what_is_taken_by_default():
    net, (x, y) = conv_net(), data()
    found = estimate_attention(net, loader(x, y), probe=some_probe(), taps="conv3")
    assert found.estimator == "refined"


def test_errors_drivers_and_uncertainty_are_those_of_the_samples():
    net, (x, y) = conv_net().double(), data(count=23)
    x, form = x.double(), {"temperature": 2.0, "score_clip": 1.2}
    options = {"probe": some_probe(), "taps": TAPS, "estimator": "gradient"}
    found = estimate_attention(net, loader(x, y), **options, **form)
    for tap in TAPS:
        rows = per_sample(net, x, y, tap)
        errors = rows.std(dim=0) / 23**0.5
        assert found.standard_errors[tap].tolist() == pytest.approx(errors.tolist(), rel=1e-6)
        drivers = rows.argsort(dim=0, descending=True, stable=True)[:4].T
        assert found.influential_samples[tap].tolist() == drivers.tolist()
        attention = reference.attention(rows.mean(dim=0).tolist(), **form)
        assert found.attention[tap].tolist() == pytest.approx(attention, rel=1e-6)
        error = reference.jackknife(
            rows.tolist(), lambda mean: reference.attention(mean, **form), groups=10
        )
        distance = sum((a - 1 / len(attention)) ** 2 for a in attention) ** 0.5
        assert found.uncertainty[tap] == pytest.approx(error / distance, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_how_attention_is_formed_and_the_head_are_told(method):
    net, (x, y) = conv_net(), data()
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": method}
    plain = estimate_attention(net, loader(x, y), **options)
    assert (plain.temperature, plain.score_clip, plain.clamp_negative_scores) == (5.0, None, False)
    form = {"temperature": 2.0, "score_clip": 1.2, "clamp_negative_scores": True}
    found = estimate_attention(net, loader(x, y), **options, **form)
    assert (found.temperature, found.score_clip, found.clamp_negative_scores) == (2.0, 1.2, True)
    assert torch.equal(found.scores["conv3"], plain.scores["conv3"])
    attention = reference.attention(found.scores["conv3"].tolist(), **form)
    assert found.attention["conv3"].tolist() == pytest.approx(attention, rel=1e-5)
    assert torch.equal(found.head_weight, some_probe().weight)
    assert torch.equal(found.head_bias, some_probe().bias)


def test_drivers_of_drawn_samples_are_places_in_the_whole_loader():
    net, (x, y) = conv_net(), data(count=20)
    picked = torch.randperm(20, generator=torch.Generator().manual_seed(0))[:3].sort().values
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": "gradient"}
    found = estimate_attention(net, loader(x, y), samples=3, **options).influential_samples["conv3"]
    order = per_sample(net, x[picked], y[picked], "conv3").argsort(dim=0, descending=True)
    assert torch.equal(found, picked[order].T)


def test_the_fitted_head_is_handed_on():
    net, (x, y) = conv_net(), data(count=12)
    fitted = fit_probe(*collect_features(net, loader(x, y)), num_outputs=3)
    options = {"taps": ["conv3"], "estimator": "gradient", "num_outputs": 3}
    found = estimate_attention(net, loader(x, y), **options)
    assert torch.allclose(found.head_weight, fitted.weight, rtol=1e-3, atol=1e-5)
    assert torch.allclose(found.head_bias, fitted.bias, rtol=1e-3, atol=1e-5)


def test_each_samples_loss_is_that_of_a_batch_of_one():
    net, (x, y) = conv_net(), data(count=8)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([5.0, 1.0, 1.0]))
    options = {"probe": some_probe(), "taps": TAPS, "estimator": "gradient"}
    same(
        estimate_attention(net, loader(x, y), loss=weighted, **options),
        estimate_attention(net, loader(x, y), **options),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_estimator_runs_the_network_channels_last(method):
    net, (x, y), seen = conv_net(), data(count=12), []
    net.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    estimate_attention(net, loader(x, y), num_outputs=3, taps=["conv3"], estimator=method)
    assert len(seen) >= 8
    assert all(seen)
    assert not net.conv3.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_several_devices_share_the_batches(method):
    net, (x, y) = conv_net().double(), data(count=10)
    options = {"probe": some_probe(), "taps": TAPS, "estimator": method}
    expected = estimate_attention(net, loader(x.double(), y), **options)
    found = estimate_attention(net, loader(x.double(), y), devices=["cpu", "cpu"], **options)
    same(found, expected, rel=1e-6)
    assert all(
        torch.equal(found.influential_samples[tap], expected.influential_samples[tap])
        for tap in TAPS
    )
    assert hooks_of(net) == 0


def test_work_is_told_with_or_without_a_known_length():
    net, (x, y), seen = conv_net(), data(count=7), []

    class Unknown:
        def __iter__(self):
            return iter(loader(x, y))

    options = {"probe": some_probe(), "taps": TAPS, "estimator": "gradient"}
    options["progress"] = lambda done, total: seen.append((done, total))
    estimate_attention(net, loader(x, y), **options)
    assert seen == [(42, 98), (84, 98), (98, 98)]
    seen.clear()
    estimate_attention(net, Unknown(), **options)
    assert seen == [(42, 0), (84, 0), (98, 0)]
    seen.clear()
    estimate_attention(net, Unknown(), samples=5, **options)
    assert seen[-1] == (70, 70)


# ---------------------------------------------------------------------------------- tolerance


def settled(tolerance, count=400, size=10, method="gradient"):
    net, (x, y) = conv_net(), data(count)
    read = []

    def batches():
        for batch in loader(x, y, size):
            read.append(batch)
            yield batch

    class Loader:
        def __iter__(self):
            return batches()

    options = {"probe": some_probe(), "taps": ["conv1"], "estimator": method}
    found = estimate_attention(net, Loader(), tolerance=tolerance, **options)
    return found, len(read)


def test_a_tolerance_ends_the_estimate_when_the_attention_has_settled(caplog):
    with caplog.at_level(logging.INFO):
        found, read = settled(0.3)
    assert 20 <= found.samples < 400
    assert read == found.samples / 10  # nothing is read for nothing
    assert found.uncertainty["conv1"] <= 0.3
    assert "gradient" in caplog.text
    assert f"{found.samples} samples" in caplog.text
    assert "within the tolerance of 0.3" in caplog.text
    assert "not within" not in caplog.text
    tighter, _ = settled(0.15)
    assert tighter.samples > found.samples
    # One batch before, it had not settled.
    x, y = data(400)
    before = found.samples - 10
    options = {"probe": some_probe(), "taps": ["conv1"], "estimator": "gradient"}
    earlier = estimate_attention(conv_net(), loader(x[:before], y[:before]), **options)
    assert earlier.uncertainty["conv1"] > 0.3


@pytest.mark.parametrize(("size", "samples"), [(1, 20), (5, 20), (10, 30), (100, 300)])
def test_not_before_three_batches_and_twenty_samples(size, samples):
    found, _ = settled(1e9, size=size)
    assert found.samples == samples


def test_the_tap_that_settles_last_decides():
    net, (x, y) = conv_net(), data(400)
    options = {"probe": some_probe(), "estimator": "gradient", "tolerance": 0.5}
    alone = [
        estimate_attention(net, loader(x, y, 10), taps=[tap], **options).samples for tap in TAPS
    ]
    both = estimate_attention(net, loader(x, y, 10), taps=TAPS, **options)
    assert both.samples >= max(alone)
    assert min(alone) < both.samples < 400
    assert max(both.uncertainty.values()) <= 0.5


def test_a_tolerance_that_is_not_met_is_told(caplog):
    with caplog.at_level(logging.INFO):
        found, _ = settled(1e-3, count=40)
    assert found.samples == 40
    assert "not within the tolerance of 0.001" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found, _ = settled(1e-3, count=40, method="refined")
    assert found.samples == 40
    assert "refined, 40 samples" in caplog.text
    assert "not within the tolerance of 0.001" in caplog.text


def test_without_a_tolerance_one_line_says_what_was_done(caplog):
    net, (x, y) = conv_net(), data(count=1)
    options = {"probe": some_probe(), "taps": ["conv3"], "estimator": "gradient"}
    with caplog.at_level(logging.INFO, "delta_transfer"):
        estimate_attention(net, loader(x, y), **options)
    assert len(caplog.records) == 1
    assert "gradient, 1 samples, relative standard error of the attention not known" in caplog.text


# -------------------------------------------------------------------------- borrow and return


class Problem(Exception):
    pass


class Drawing:
    """Batches whose making draws random numbers from everywhere, as augmentation does."""

    def __init__(self, fails: bool):
        self.fails = fails

    def __iter__(self):
        x, y = data()
        for i, batch in enumerate(loader(x, y)):
            random.random()
            np.random.rand()
            torch.rand(())
            if self.fails and i == 1:
                raise Problem
            yield batch


def failing_loss(logits, targets):
    raise Problem


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails", ["never", "loader", "loss"])
def test_the_network_and_the_random_state_come_back_untouched(method, fails):
    net = conv_net().train()
    net.norm2.eval()
    net.conv2.requires_grad_(False)
    net.conv3.weight.grad = torch.ones_like(net.conv3.weight)
    before = copy.deepcopy(net)
    before.conv3.weight.grad = torch.ones_like(net.conv3.weight)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    options = {"loss": failing_loss} if fails == "loss" else {}
    try:
        estimate_attention(
            net, Drawing(fails == "loader"), num_outputs=3, taps=TAPS, estimator=method, **options
        )
    except Problem:
        assert fails != "never"
    else:
        assert fails == "never"
    assert (random.random(), np.random.rand(), torch.rand(())) == expected
    assert hooks_of(net) == 0
    for now, then in zip(net.modules(), before.modules(), strict=True):
        assert now.training == then.training
    for (name, now), then in zip(net.named_parameters(), before.parameters(), strict=True):
        assert now.requires_grad == then.requires_grad
        assert (now.grad is None) == (name != "conv3.weight")
    assert torch.equal(net.conv3.weight.grad, before.conv3.weight.grad)
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())


# ------------------------------------------------------------------------------------- errors


def test_errors_name_the_argument():
    net, batches = conv_net(), loader(*data())
    with pytest.raises(UserError, match="unknown estimator 'fisher': choose from gradient"):
        estimate_attention(net, batches, num_outputs=3, estimator="fisher")
    with pytest.raises(UserError, match="needs num_outputs"):
        estimate_attention(net, batches)
    with pytest.raises(UserError, match="samples must be at least 1, got 0"):
        estimate_attention(net, batches, num_outputs=3, samples=0)
    with pytest.raises(UserError, match="memory must be at least 1, got 0"):
        estimate_attention(net, batches, num_outputs=3, memory=0)
    with pytest.raises(UserError, match="temperature must be positive, got 0"):
        estimate_attention(net, batches, num_outputs=3, temperature=0)
    with pytest.raises(UserError, match="score_clip must be positive, got -1"):
        estimate_attention(net, batches, num_outputs=3, score_clip=-1)
    with pytest.raises(UserError, match="tolerance must be positive, got nan"):
        estimate_attention(net, batches, num_outputs=3, tolerance=float("nan"))
    with pytest.raises(UserError, match="unknown precision 'float16': choose from float32"):
        estimate_attention(net, batches, num_outputs=3, precision="float16")
    with pytest.raises(UserError, match="devices is empty"):
        estimate_attention(net, batches, num_outputs=3, devices=[])
    with pytest.raises(UserError, match="unknown tap 'conv9'"):
        estimate_attention(net, batches, num_outputs=3, taps="conv9")
    with pytest.raises(UserError, match="unknown head 'head'"):
        estimate_attention(net, batches, num_outputs=3, head="head")


@pytest.mark.parametrize(
    "given", [{"num_outputs": 3}, {"probe": some_probe()}], ids=["fit", "given"]
)
def test_an_empty_loader_is_an_error(given):
    with pytest.raises(UserError, match="the loader is empty"):
        estimate_attention(conv_net(), [], taps=TAPS, **given)


def test_a_loader_that_can_be_run_through_only_once_is_an_error():
    batches = iter(loader(*data()))
    with pytest.raises(UserError, match="iterated only once"):
        estimate_attention(conv_net(), batches, num_outputs=3, taps=TAPS)
