"""The taps of DELTA's authors, and the head that they estimate channel attention with."""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.errors import ConfigError
from delta_transfer.features.probe import LinearProbe

# Architecture -> taps of the authors' code (https://github.com/lixingjian/DELTA), under the names
# that timm and torchvision share. In a ResNet the tap is conv3 alone, before its batch norm, the
# residual sum and ReLU; in Inception-V3 it is a whole block.
OFFICIAL_TAPS: dict[str, tuple[str, ...]] = {
    "resnet50": ("layer1.2.conv3", "layer2.3.conv3", "layer3.5.conv3", "layer4.2.conv3"),
    "resnet101": ("layer1.2.conv3", "layer2.3.conv3", "layer3.22.conv3", "layer4.2.conv3"),
    "inception_v3": ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e"),
}

# Old timm names have the source of the weights as a prefix, or "_v1b" at the end.
_NAME = re.compile(
    rf"(?:(?:tv|tf|gluon|adv|ssl|swsl)_)?(?P<architecture>{'|'.join(OFFICIAL_TAPS)})(?:_v1b)?"
)

LR = 0.01
MOMENTUM = 0.9
BATCH_SIZE = 64
WEIGHT_DECAY = 1e-4
EPOCHS = 10
LR_DECAY = 0.1 ** (1 / 6)  # per epoch


def official_taps(architecture: str) -> tuple[str, ...]:
    """Return the modules that the authors of DELTA tap.

    Args:
        architecture: the network's name in timm or torchvision, with or without the library as a
            prefix and the tag of its weights.

    Returns:
        Module names, in the order in which they are called.

    Raises:
        ConfigError: if the authors' code does not have the architecture.

    Example:
        >>> official_taps("torchvision/resnet50")
        ('layer1.2.conv3', 'layer2.3.conv3', 'layer3.5.conv3', 'layer4.2.conv3')
        >>> official_taps("tf_inception_v3") == official_taps("timm/inception_v3.tv_in1k")
        True
    """
    found = _architecture(architecture)
    if found is None:
        raise ConfigError(
            f"the authors' code has no taps for {architecture!r}, only for "
            f"{', '.join(OFFICIAL_TAPS)}: use one of these, or name the taps (`taps`)"
        )
    return OFFICIAL_TAPS[found]


def official_image_size(architecture: str) -> int:
    """Return the side of the authors' images in pixels: 299 for Inception-V3, else 224."""
    return 299 if _architecture(architecture) == "inception_v3" else 224


def _architecture(name: str) -> str | None:
    found = _NAME.fullmatch(name.rpartition("/")[2].partition(".")[0])
    return None if found is None else found["architecture"]


def official_head(features: Tensor, targets: Tensor, *, num_outputs: int, seed: int) -> LinearProbe:
    """Train the head that the authors of DELTA estimate channel attention with.

    A linear layer with PyTorch's initialization, trained for 10 epochs of shuffled batches of 64
    (the last one may be short) with SGD: learning rate 0.01, multiplied by 0.1 over every 6
    epochs, a step at the end of each; momentum 0.9; weight decay 1e-4 of weight and bias
    (https://github.com/lixingjian/DELTA). Their code trains it inside the network, whose
    batch-norm statistics drift meanwhile; with cached features (`collect_features`) they do not.

    Args:
        features: `[N, F]`, or `[N, V, F]` with V views of each sample, of which the first is used.
        targets: class indices `[N]`.
        num_outputs: number of classes.
        seed: seed of the initialization and of the order of samples; the global random state is
            left unchanged.

    Returns:
        The head, in float32 on the CPU. Its `regularization` is the weight decay, 1e-4, fixed
        rather than selected: `regularization / 2 (||W||^2 + ||b||^2)` on features that are not
        standardised.

    Raises:
        ValueError: if features and targets are not samples of classes 0 to `num_outputs - 1`.

    Example:
        >>> x = torch.tensor([[-1.0], [1.0]]).repeat(200, 1)
        >>> head = official_head(x, torch.tensor([0, 1]).repeat(200), num_outputs=2, seed=0)
        >>> head(x[:2]).argmax(dim=1)
        tensor([0, 1])
    """
    rows = (features[:, 0] if features.ndim == 3 else features).detach().cpu().float()
    labels = targets.detach().cpu()
    _check(rows, labels, num_outputs)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        # Not torch.manual_seed: that would reseed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        head = nn.Linear(rows.shape[1], num_outputs)
        optimizer = torch.optim.SGD(
            head.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, LR_DECAY)
        for _ in range(EPOCHS):
            for batch in torch.split(torch.randperm(len(rows)), BATCH_SIZE):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(head(rows[batch]), labels[batch]))
                optimizer.step()
            schedule.step()
    return LinearProbe(head.weight.detach(), head.bias.detach(), WEIGHT_DECAY)


def _check(rows: Tensor, labels: Tensor, num_outputs: int) -> None:
    if rows.ndim != 2 or len(rows) == 0:
        raise ValueError(f"features must be [N, F] or [N, V, F], N > 0, got {tuple(rows.shape)}")
    if labels.shape != rows.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"targets must be class indices [{len(rows)}], got {labels.dtype} {tuple(labels.shape)}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_outputs:
        raise ValueError(
            f"targets must be classes from 0 to {num_outputs - 1} (num_outputs={num_outputs}), got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
