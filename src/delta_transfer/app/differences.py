"""Differences between the features of a fine-tuned and the pretrained network."""

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from delta_transfer.app.spatial_maps import as_spatial_map
from delta_transfer.features.taps import Taps
from delta_transfer.features.variance import FeatureVariance
from delta_transfer.functional import at_least_float32, flatten_positions
from delta_transfer.utils.module_state import eval_mode


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FeatureDifference:
    """The distance of an image's features to those of the pretrained network at a tap.

    Args:
        tap: its name.
        mean: `1/2 mean_s mean_c (F(w) - F(w0))^2 / v`, DELTA's distance without attention.
        values: the same at each position, `[H, W]`, on the CPU; None without positions.
    """

    tap: str
    mean: float
    values: Tensor | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The pretrained network of a run.

    Args:
        network: without its head.
        variance: tap -> `v`, the mean over channels of the variance of its features on training
            images; for a missing tap, the variance of the image itself is used.
    """

    network: nn.Module
    variance: Mapping[str, Tensor]


def record(network: nn.Module, inputs: Tensor, taps: Iterable[str]) -> dict[str, Tensor]:
    """Return the outputs of a network at its taps, in eval mode and without gradients."""
    with Taps(network, list(taps)) as recorded, eval_mode(network), torch.no_grad():
        return recorded.record(inputs)


def measure_variance(
    network: nn.Module, batches: Iterable[Tensor], taps: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return, for each tap, the mean over channels of the variance over samples and positions.

    Args:
        network: the pretrained one.
        batches: training images `[B, 3, S, S]` without augmentation, at least one.
        taps: name -> channel dimension of its output.
    """
    found = {tap: FeatureVariance() for tap in taps}
    for inputs in batches:
        for tap, output in record(network, inputs, taps).items():
            found[tap].update(flatten_positions(output, taps[tap]))
    return {tap: variance.compute() for tap, variance in found.items()}


def differences(
    source: Source, inputs: Tensor, *, target: Mapping[str, Tensor], taps: Mapping[str, int]
) -> list[FeatureDifference]:
    """Measure how fine-tuning has changed the features of one image, tap by tap.

    Args:
        source: the pretrained network.
        inputs: the image, `[1, 3, S, S]`.
        target: tap -> the fine-tuned network's output.
        taps: name -> channel dimension of its output.
    """
    found = []
    for tap, before in record(source.network, inputs, taps).items():
        before, after = at_least_float32(before), at_least_float32(target[tap])
        variance = source.variance.get(tap)
        if variance is None:
            own = FeatureVariance()
            own.update(flatten_positions(before, taps[tap]))
            variance = own.compute()
        squares = 0.5 * (after - before).square() / variance.to(before.device)
        maps = as_spatial_map(squares, taps[tap])
        found.append(
            FeatureDifference(
                tap=tap,
                mean=float(squares.mean()),
                values=None if maps is None else maps[0].mean(dim=0).cpu(),
            )
        )
    return found
