"""Tiny networks with what makes large ones hard: batch norm, changes in place, residual sums."""

import copy

import torch
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions with batch norm, in-place ReLUs, an in-place residual sum, and a head."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 6, 3, stride=2)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        shortcut = x
        x = self.norm2(self.conv2(x))
        x += shortcut
        x = self.conv3(self.relu(x))
        return self.fc(self.drop(x.mean(dim=(2, 3))))


def conv_net(seed: int = 0, outputs: int = 3) -> ConvNet:
    """A ConvNet in eval mode with random weights, batch-norm statistics and affine parameters."""
    torch.manual_seed(seed)
    net = ConvNet(outputs)
    for norm in (net.norm1, net.norm2):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return net.eval()


def moved(source: nn.Module, seed: int = 1, by: float = 0.1) -> nn.Module:
    """A copy whose weights have gone some way."""
    target = copy.deepcopy(source)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter += by * torch.randn_like(parameter)
    return target


def hooks_of(model: nn.Module) -> int:
    """How many forward hooks are set anywhere in a network."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
