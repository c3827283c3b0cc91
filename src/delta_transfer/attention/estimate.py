"""Channel attention of a pretrained network on a new task: which channels matter for it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.attention.ablation import ablation_scores
from delta_transfer.attention.gradient import first_order_scores
from delta_transfer.borrow import (
    device_of,
    evaluating,
    same_random_state,
    without_parameter_gradients,
)
from delta_transfer.channel_attention import ChannelAttention, weights_fingerprint
from delta_transfer.errors import UserError, unknown
from delta_transfer.probe import (
    LinearProbe,
    Loss,
    collect_features,
    find_head,
    fit_probe,
    replaced_head,
)
from delta_transfer.stages import unwrap
from delta_transfer.taps import resolve_taps

ESTIMATORS: dict[str, Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]] = {
    "gradient": first_order_scores,
    "exact": ablation_scores,
}


def estimate_attention(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    num_outputs: int | None = None,
    probe: LinearProbe | None = None,
    head: str = "auto",
    taps: str | Sequence[str] = "auto",
    loss: Loss = F.cross_entropy,
    method: Literal["gradient", "exact"] = "gradient",
    samples: int | None = None,
    temperature: float = 5.0,
    seed: int = 0,
) -> ChannelAttention:
    """How much each channel of a pretrained network matters for a new task.

    The growth of the task loss when the channel is switched off, averaged over samples, with a
    freshly trained head on the pretrained network, whose weights and batch-norm statistics stay as
    they are; standardised per tap, divided by a temperature, softmax (Li et al., ICLR 2019,
    https://arxiv.org/abs/1901.09229, section 3.3). The model and the global random state are
    given back untouched.

    Args:
        model: the pretrained network. Its own head is not used.
        loader: batches (inputs, targets) of training data without augmentation, in any order. It
            is run through once; once more to fit the probe, and once more to draw samples.
        num_outputs: how many classes; not needed with a probe.
        probe: the freshly trained head; by default a linear probe is fitted.
        head: the name of the module that makes the logits, or `"auto"`.
        taps: module names, glob patterns or `"auto"`.
        loss: task loss, the mean over a batch.
        method: `"gradient"`, to first order in one forward and backward pass a batch; or
            `"exact"`, one forward pass a batch for each channel.
        samples: how many samples, drawn at random, the scores are averaged over; all if None.
        temperature: of the softmax; larger is closer to uniform. The authors use 5.
        seed: of the draw of samples and of the probe's folds.

    Returns:
        Scores, attention and feature variance per tap.

    Raises:
        UserError: if a name is unknown, the loader is empty, or there is neither `num_outputs` nor
            a probe.
    """
    if method not in ESTIMATORS:
        raise unknown("attention method", method, list(ESTIMATORS))
    if probe is None and num_outputs is None:
        raise UserError("estimate_attention needs num_outputs (how many classes) or a fitted probe")
    if not temperature > 0:
        raise UserError(f"temperature must be positive, got {temperature}")
    if samples is not None and samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    model = unwrap(model)
    names, head = resolve_taps(model, taps), find_head(model, head)
    with ExitStack() as borrowed:
        borrowed.enter_context(same_random_state(model))
        borrowed.enter_context(evaluating(model))
        borrowed.enter_context(without_parameter_gradients(model))
        if probe is None:
            assert num_outputs is not None
            features, targets = collect_features(model, loader, head=head)
            probe = fit_probe(features, targets, num_outputs=num_outputs, loss=loss, seed=seed)
        borrowed.enter_context(replaced_head(model, head, probe))
        batches = _Batches(loader, device_of(model), samples, seed)
        scores, variance = ESTIMATORS[method](model, batches, taps=names, loss=loss)
    return ChannelAttention(
        scores={tap: values.cpu() for tap, values in scores.items()},
        variance={tap: value.cpu() for tap, value in variance.items()},
        temperature=temperature,
        method=method,
        samples=batches.count,
        source=weights_fingerprint(model, head=head),
    )


class _Batches:
    """The loader's batches on a device, cut down to samples drawn at random if asked."""

    def __init__(
        self,
        loader: Iterable[tuple[Tensor, Tensor]],
        device: torch.device,
        samples: int | None,
        seed: int,
    ) -> None:
        self.count = 0
        self._loader = loader
        self._device = device
        self._samples = samples
        self._seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        picked = None if self._samples is None else self._draw(self._samples)
        position = 0
        for inputs, targets in self._loader:
            size = len(targets)
            if picked is not None:
                mask = picked[position : position + size]
                inputs, targets = inputs[mask], targets[mask]
            position += size
            if len(targets):
                self.count += len(targets)
                yield inputs.to(self._device), targets.to(self._device)
        if not self.count:
            raise UserError(
                "the loader is empty, or can be run through only once: channel attention needs "
                "training data from a loader such as DataLoader or a list of batches"
            )

    def _draw(self, samples: int) -> Tensor:
        total = sum(len(targets) for _, targets in self._loader)
        generator = torch.Generator().manual_seed(self._seed)
        picked = torch.zeros(total, dtype=torch.bool)
        picked[torch.randperm(total, generator=generator)[:samples]] = True
        return picked
