"""MixUp and CutMix with random numbers that depend on seed and step only."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from delta_transfer.utils.seeds import derive_seed


class Mixing:
    """Mixes each image of a batch, and its label, with the previous one.

    Random numbers depend on (seed, step) only; the global random state does not change.

    Args:
        mixup: alpha of MixUp (https://arxiv.org/abs/1710.09412), which averages images with weights
            from Beta(alpha, alpha); 0 for none.
        cutmix: alpha of CutMix (https://arxiv.org/abs/1905.04899), which replaces a rectangle of
            such a relative area; 0 for none. With both, each step uses one of them at random.
        num_classes: number of classes.
        seed: the user's seed.

    Example:
        >>> mix = Mixing(mixup=1.0, num_classes=3, seed=0)
        >>> mix(torch.zeros(2, 3, 4, 4), torch.tensor([0, 2]), step=5)[1].sum(dim=1)
        tensor([1., 1.])
    """

    def __init__(
        self, *, mixup: float = 0.0, cutmix: float = 0.0, num_classes: int, seed: int
    ) -> None:
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        self._ways: Sequence[v2.Transform] = [
            kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha
        ]
        self._seed = seed

    def __call__(self, inputs: Tensor, targets: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """Return mixed images and their class probabilities `[B, K]`.

        Args:
            inputs: images `[B, C, H, W]`.
            targets: labels `[B]`.
            step: training step, from 0.
        """
        if not self._ways:
            return inputs, targets
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reseed every accelerator as well.
            torch.default_generator.manual_seed(derive_seed(self._seed, "mixing", step))
            way = self._ways[int(torch.randint(len(self._ways), ()))]
            mixed: tuple[Tensor, Tensor] = way(inputs, targets)
        return mixed
