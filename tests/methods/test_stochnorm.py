import copy
import math

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from delta_transfer import Regularizer, StochasticNorm, Taps
from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.methods import LDIFS
from delta_transfer.methods.registry import METHODS
from tests.networks import conv_net, hooks_of

CHANNELS = 400


def norm(kind: type[nn.Module] = nn.BatchNorm2d, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layer = kind(CHANNELS)
    for tensor in (layer.weight, layer.bias, layer.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return layer.train()


def by_hand(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """With the batch's and with the running statistics; and the running ones, updated."""
    dims = [d for d in range(inputs.ndim) if d != 1]
    count = inputs.numel() / inputs.shape[1]
    mean, variance = inputs.mean(dims), inputs.var(dims, correction=0)
    new_mean = 0.9 * layer.running_mean + 0.1 * mean
    new_variance = 0.9 * layer.running_var + 0.1 * variance * count / (count - 1)

    def normalise(m: Tensor, v: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        scaled = (inputs - m.view(shape)) / (v.view(shape) + layer.eps).sqrt()
        return scaled * layer.weight.view(shape) + layer.bias.view(shape)

    return normalise(mean, variance), normalise(new_mean, new_variance), new_mean, new_variance


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (6, CHANNELS)),
        (nn.BatchNorm1d, (6, CHANNELS, 3)),
        (nn.BatchNorm2d, (6, CHANNELS, 2, 3)),
        (BatchNormAct2d, (6, CHANNELS, 2, 3)),  # with a ReLU inside
    ],
)
@pytest.mark.parametrize("probability", [0.0, 0.2, 0.7, 1.0])
def test_each_channel_takes_one_or_the_other_by_the_probability(kind, shape, probability):
    """A published version draws with probability 1/2, whatever it is asked for."""
    layer, inputs = norm(kind), torch.randn(shape) * 2 + 1
    batch, running, mean, variance = by_hand(layer, inputs)
    if kind is BatchNormAct2d:
        batch, running = batch.relu(), running.relu()
    with StochasticNorm(layer, probability=probability, generator=torch.Generator().manual_seed(0)):
        found = layer(inputs)
    dims = [d for d in range(len(shape)) if d != 1]
    near = [(found - other).abs().amax(dims) < 1e-4 for other in (batch, running)]
    assert (near[0] | near[1]).all()
    differ = ~(near[0] & near[1])  # not where a ReLU has cut off both
    share = near[1][differ].double().mean().item()
    assert share == pytest.approx(probability, abs=0.1 if 0 < probability < 1 else 0)
    assert torch.allclose(layer.running_mean, mean, atol=1e-5)
    assert torch.allclose(layer.running_var, variance, atol=1e-5)
    assert layer.num_batches_tracked == 1


def test_channels_are_drawn_anew_in_each_pass_by_the_generator():
    inputs = torch.randn(6, CHANNELS, 2, 2)

    def outputs(seed: int) -> list[Tensor]:
        layer = norm()
        with StochasticNorm(layer, generator=torch.Generator().manual_seed(seed)):
            return [layer(inputs) for _ in range(2)]

    first, again, other = outputs(0), outputs(0), outputs(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], other[0])
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_gradients_are_those_of_each_channels_own_form():
    layer, inputs = norm().double(), torch.randn(4, CHANNELS, 2, 2, dtype=torch.float64)
    inputs.requires_grad_()
    batch, running, _, _ = by_hand(layer, inputs)
    weights = torch.randn_like(batch)
    with StochasticNorm(layer, generator=torch.Generator().manual_seed(0)):
        found = layer(inputs)
    taken = (found - running).abs().amax((0, 2, 3)) < 1e-9
    # Running statistics are constants, for which the batch is not responsible.
    layer.eval()
    constant = layer(inputs)
    expected = torch.where(taken.view(1, -1, 1, 1), constant, batch)
    slopes = [torch.autograd.grad((o * weights).sum(), inputs)[0] for o in (found, expected)]
    assert torch.allclose(*slopes)


def test_two_passes_before_one_backward_pass():
    layer, inputs = norm(), torch.randn(4, CHANNELS, 2, 2, requires_grad=True)
    with StochasticNorm(layer):
        (layer(inputs) + layer(2 * inputs)).square().sum().backward()
    assert inputs.grad.isfinite().all()


def test_eval_mode_is_plain_and_the_network_is_the_plain_one_throughout():
    network, inputs = conv_net(), torch.randn(4, 3, 8, 8)
    expected, names = network(inputs), list(network.state_dict())
    with StochasticNorm(network, probability=1.0):
        assert torch.equal(network(inputs), expected)
        assert list(network.state_dict()) == names
        assert type(network.norm1) is nn.BatchNorm2d
    assert hooks_of(network) == 0
    with pytest.raises(RuntimeError, match="on purpose"), StochasticNorm(network):
        raise RuntimeError("on purpose")
    assert hooks_of(network) == 0
    network.train()
    assert not torch.equal(network(inputs), expected)  # plain batch norm in train mode again


def test_frozen_batch_norm_stays_frozen():
    network, inputs = conv_net(), torch.randn(4, 3, 8, 8)
    network.drop.p = 0.0
    before = copy.deepcopy(network.state_dict())
    expected = network(inputs)
    with Regularizer(network, None, []), StochasticNorm(network, probability=1.0):
        assert torch.equal(network.train()(inputs), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_it_works_beside_taps_on_the_very_layer():
    source, network, inputs = conv_net(), conv_net(), torch.randn(4, 3, 8, 8)
    penalties = [LDIFS(["norm1"], strength=1.0)]
    regularizer = Regularizer(network, source, penalties, batch_norm="train")
    with regularizer, StochasticNorm(network):
        network.train()(inputs)
        assert regularizer(inputs).total.item() > 0
    with Taps(network, ["norm1"]) as taps, StochasticNorm(network):
        network(inputs)
        assert taps.outputs()["norm1"].shape == (4, 4, 8, 8)


def test_errors():
    for wrong in (1.5, -0.5, math.nan):
        message = f"^stochnorm: `probability` is a probability, from 0 to 1; got {wrong:g}$"
        with pytest.raises(ConfigError, match=message):
            StochasticNorm(norm(), probability=wrong)
    with pytest.raises(ModelError, match="needs a network with batch norm, Linear has none"):
        StochasticNorm(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="BatchNorm1d has none with running statistics"):
        StochasticNorm(nn.BatchNorm1d(2, track_running_stats=False))


def test_a_run_names_its_own_option():
    assert METHODS["stochnorm"].network_context is not None
    message = r"^stochnorm: `strength` is a probability, from 0 to 1; got 1\.5$"
    with pytest.raises(ConfigError, match=message):
        METHODS["stochnorm"].network_context(norm(), 1.5, torch.Generator())
