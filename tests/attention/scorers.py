"""A network of which much is to be told, and an exact scorer that takes one channel at a time."""

import torch
from torch import nn

from delta_transfer.attention.estimators.ablation import naive_scores


class OneByOne:
    """Stands in for `Exact` where the network is tiny: nothing is captured or compiled."""

    notes = ()

    def __init__(self, model, *, taps, loss, memory=None, precision="float32"):
        self.model, self.taps, self.loss = model, taps, loss

    def __call__(self, inputs, targets, *, progress=None):
        options = {"taps": self.taps, "loss": self.loss, "progress": progress}
        return naive_scores(self.model, inputs, targets, **options)


class Curved(nn.Module):
    """Saturating features, which first order is wrong about."""

    def __init__(self, outputs: int = 4):
        super().__init__()
        self.early = nn.Conv2d(3, 24, 3)
        self.late = nn.Conv2d(24, 32, 3)
        self.fc = nn.Linear(32, outputs)

    def forward(self, x):
        x = torch.relu(self.early(x))
        x = torch.sigmoid(2 * self.late(x) - 1)
        return self.fc(x.square().mean(dim=(2, 3)))


def curved(seed=0):
    torch.manual_seed(seed)
    return Curved().eval()


def patterns(count=96, seed=0):
    """Images of four kinds, in random order."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(4, 3, 8, 8, generator=generator)
    y = torch.randint(4, (count,), generator=generator)
    return kinds[y] + 1.5 * torch.randn(count, 3, 8, 8, generator=generator), y


def batches(x, y, size=16):
    return list(zip(x.split(size), y.split(size), strict=True))
