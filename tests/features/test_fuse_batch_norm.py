import copy
import threading

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from delta_transfer.features import fuse_batch_norm as fusing
from delta_transfer.features.fuse_batch_norm import fuse_batch_norm
from tests.networks import conv_net, hooks_of


def output(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    return [network(inputs)]


def fuse(network: nn.Module, *keep: str, inputs: Tensor | None = None) -> nn.Module:
    inputs = torch.randn(2, 3, 16, 16) if inputs is None else inputs
    modules = [network.get_submodule(name) for name in keep]
    return fuse_batch_norm(network, inputs, output, keep=modules)


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def stirred(network: nn.Module) -> nn.Module:
    """With batch norm that does something."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                continue
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
    return network


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_efficientnet", "tf_mobilenetv3_small_minimal_100"]
)
@pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"]
)
def test_the_copy_gives_the_same_without_batch_norm(monkeypatch, name, layout):
    monkeypatch.setattr(fusing, "MAX_WEIGHTS_PER_ACTIVATION", 1e9)  # however small the maps
    torch.manual_seed(0)
    network = stirred(timm.create_model(name, pretrained=False)).to(memory_format=layout)
    before = copy.deepcopy(network.state_dict())
    fused = fuse(network, inputs=torch.randn(2, 3, 64, 64))
    assert norms(network) > 9
    assert norms(fused) == 0
    inputs = torch.randn(3, 3, 96, 64)
    with torch.no_grad():
        expected, found = network.eval()(inputs), fused.eval()(inputs)
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5 * expected.abs().max())
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert hooks_of(network) == hooks_of(fused) == 0


def test_in_double_precision_it_is_the_same_to_the_last_digits():
    network = conv_net().double()
    inputs = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    fused = fuse(network, inputs=inputs)
    assert isinstance(fused.norm1, nn.Identity)
    assert torch.allclose(fused(inputs), network(inputs), rtol=1e-12)


def test_what_is_not_fused_is_shared_and_flags_are_given_back():
    network = conv_net()
    network.train()
    network.norm2.eval()
    fused = fuse(network)
    assert fused.conv3.weight is network.conv3.weight
    assert fused.conv1.weight is not network.conv1.weight
    assert network.norm1.training
    assert not network.norm2.training


@pytest.mark.parametrize("kept", ["conv1", "norm1"])
def test_modules_that_are_looked_at_stay(kept):
    fused = fuse(conv_net(), kept)
    assert isinstance(fused.norm1, nn.BatchNorm2d)
    assert isinstance(fused.norm2, nn.Identity)


class Twice(nn.Module):
    """What the convolution returns is seen by something beside batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.norm(x) + x


class Again(nn.Module):
    """One convolution in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)))


class Weights(nn.Module):
    """Something beside the layer itself reads the convolution's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.conv2d(x, self.conv.weight)


def watched() -> nn.Module:
    network = conv_net()
    network.conv2.register_forward_hook(lambda module, inputs, output: output + 1)
    return network


def uncopied() -> nn.Module:
    network = conv_net()
    network.held = threading.Lock()
    return network


UNFOLDED = {
    "not to be copied": uncopied,
    "half precision": lambda: conv_net().to(torch.bfloat16),
    "seen twice": Twice,
    "called twice": Again,
    "a weight that is read": Weights,
    "watched": watched,
    "not adjacent": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
    "statistics of the batch": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    "a computed weight": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    ),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_what_cannot_be_fused_is_left(name):
    torch.manual_seed(0)
    network = stirred(UNFOLDED[name]())
    dtype = next(network.parameters()).dtype
    assert fuse(network, inputs=torch.randn(2, 3, 16, 16).to(dtype)) is network


def test_batch_norm_without_weights_and_convolutions_without_bias_fuse_too():
    network = stirred(
        nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False))
    )
    fused, inputs = fuse(network), torch.randn(2, 3, 8, 8)
    assert isinstance(fused[1], nn.Identity)
    assert torch.allclose(fused(inputs), network.eval()(inputs), atol=1e-6)


def test_many_weights_for_small_maps_stay_where_they_are():
    network = stirred(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))  # 108 weights
    assert fuse(network, inputs=torch.randn(2, 3, 3, 3)) is network  # 4 numbers
    assert fuse(network, inputs=torch.randn(2, 3, 4, 4)) is not network  # 16
