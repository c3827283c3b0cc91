"""Exact channel scores: each channel is ablated once, and only what follows its tap is rerun."""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from delta_transfer.attention.estimators.scorer import (
    BatchScores,
    ProgressUpdate,
    concatenate_scores,
    per_sample_losses,
    to_fast_memory_format,
)
from delta_transfer.attention.graph.capture import CaptureError, capture
from delta_transfer.attention.graph.downstream import (
    DownstreamGraph,
    NodeValues,
    advance_cut_point,
    baseline_pass,
    initial_subgraph,
    most_active,
)
from delta_transfer.attention.graph.memory import Budget, default_memory
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.probe import Loss
from delta_transfer.features.taps import Taps
from delta_transfer.functional import flatten_positions

logger = logging.getLogger(__name__)

Precision = Literal["float32", "bfloat16"]

CHECKED_CHANNELS = 2  # channels of each tap that are compared with the slow loop
CHECKED_SAMPLES = 4
# Tolerances for rounding: relative to the largest score, and in units of a logit's rounding error.
ROUNDING = 1e-2
LOGIT_ROUNDING = 1000


class ExactScorer:
    """Increase of each sample's loss when a channel is ablated (DELTA, section 3.3).

    The same scores as `naive_scores`, faster: nothing before the tap is recomputed, and many
    copies of the batch, each without one channel, go through the rest together. At the first call
    a few channels are compared with the slow loop; where they differ, or the network cannot be
    captured as a graph, the slow loop computes all scores, and `notes` says so. Inputs that are
    not tensors always take the slow loop.

    Args:
        model: a network with its head, in eval mode.
        taps: module names.
        loss: task loss; each sample is passed as a batch of one.
        memory: bytes for the values of a pass, beside the network's weights; by default 96 MiB on
            the CPU, half of the free memory on a GPU.
        precision: `"bfloat16"` runs the network in mixed precision; `notes` has the error.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        taps: Sequence[str],
        loss: Loss,
        memory: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self._model = model
        self._taps = tuple(taps)
        self._loss = loss
        self._memory = memory
        self._precision: Precision = precision
        self._subgraphs: _TapSubgraphs | None = None
        self._tried = False

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Score a batch.

        Args:
            inputs: B samples, on the model's device.
            targets: `[B, ...]`.
            progress: called with the number of further pairs of a sample and a channel.

        Raises:
            ConfigError: if the memory is too little for a single sample.
        """
        inputs = to_fast_memory_format(inputs)
        if isinstance(inputs, Tensor) and not self._tried:
            self._subgraphs, self._tried = self._try_capture(inputs, targets), True
        if self._subgraphs is None or not isinstance(inputs, Tensor):
            return naive_scores(
                self._model, inputs, targets, taps=self._taps, loss=self._loss, progress=progress
            )
        return self._score(self._subgraphs, inputs, targets, self._precision, progress=progress)

    def _try_capture(self, inputs: Tensor, targets: Tensor) -> "_TapSubgraphs | None":
        """Return the network after each tap; None if it does not compute the same scores."""
        try:
            graph = capture(self._model, inputs, self._taps)
        except CaptureError as error:
            self._note(f"this network cannot be captured as a graph ({error}); {_SLOW}")
            return None
        starts = {tap: initial_subgraph(graph, tap) for tap in self._taps}
        memory = default_memory(inputs.device) if self._memory is None else self._memory
        size = Budget(starts, memory).max_samples(len(inputs))
        inputs, targets = inputs[: min(size, CHECKED_SAMPLES)], targets[:CHECKED_SAMPLES][:size]
        with torch.inference_mode():
            base = baseline_pass(starts, inputs)
            subgraphs = {tap: advance_cut_point(start, base) for tap, start in starts.items()}
            channels = {
                tap: most_active(start, base, CHECKED_CHANNELS) for tap, start in starts.items()
            }
        expected = naive_scores(
            self._model, inputs, targets, taps=self._taps, loss=self._loss, channels=channels
        )
        cut = _TapSubgraphs(by_tap=subgraphs, budget=Budget(subgraphs, memory))
        found = self._score(cut, inputs, targets, "float32", channels=channels)
        if not _scores_match(found, expected, base[graph.logits]):
            self._note(f"the captured graph does not compute the same; {_SLOW}")
            return None
        if self._precision != "float32":
            rough = self._score(cut, inputs, targets, self._precision, channels=channels)
            self._note(
                f"{self._precision}: scores differ from float32 by up to "
                f"{_describe_difference(rough, found)}"
            )
        return cut

    def _note(self, note: str) -> None:
        logger.warning("exact attention: %s", note)
        self.notes = (*self.notes, note)

    def _score(
        self,
        subgraphs: "_TapSubgraphs",
        inputs: Tensor,
        targets: Tensor,
        precision: Precision,
        *,
        channels: Mapping[str, Tensor] | None = None,
        progress: ProgressUpdate | None = None,
    ) -> BatchScores:
        by_tap, size = subgraphs.by_tap, subgraphs.budget.max_samples(len(inputs))
        parts = []
        with torch.inference_mode(), _autocast(inputs.device, precision):
            for some, labels in zip(
                torch.split(inputs, size), torch.split(targets, size), strict=True
            ):
                base = baseline_pass(by_tap, some)
                scores = {}
                for tap, subgraph in by_tap.items():
                    which = (
                        torch.arange(subgraph.num_channels) if channels is None else channels[tap]
                    )
                    copies = subgraphs.budget.max_copies(tap, len(some))
                    chunks = torch.split(which.to(some.device), copies)
                    scores[tap] = self._loss_increases(subgraph, base, labels, chunks, progress)
                features = {
                    tap: flatten_positions(base[subgraph.tap], subgraph.graph.channel_dims[tap])
                    for tap, subgraph in by_tap.items()
                }
                parts.append(BatchScores(scores=scores, features=features))
        return concatenate_scores(parts)

    def _loss_increases(
        self,
        subgraph: DownstreamGraph,
        base: NodeValues,
        targets: Tensor,
        chunks: Sequence[Tensor],
        progress: ProgressUpdate | None,
    ) -> Tensor:
        """Return the increase of each loss without each channel, `[B, C]`."""
        plain = per_sample_losses(self._loss, _upcast_logits(base[subgraph.graph.logits]), targets)
        off = subgraph.ablated_cut_point(base)
        columns = []
        for channels in chunks:
            logits = subgraph.logits(base, off, channels)
            labels = targets.expand(len(channels), *targets.shape).flatten(0, 1)
            losses = per_sample_losses(self._loss, _upcast_logits(logits.flatten(0, 1)), labels)
            columns.append(losses.reshape(len(channels), -1) - plain)
            if progress is not None:
                progress(len(losses))
        return torch.cat(columns).T


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _TapSubgraphs:
    """Downstream graphs by tap, and the number of copies that fit into memory."""

    by_tap: dict[str, DownstreamGraph]
    budget: Budget


_SLOW = "channels are ablated one full forward pass at a time, which is many times slower"


def naive_scores(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    *,
    taps: Sequence[str],
    loss: Loss,
    channels: Mapping[str, Tensor] | None = None,
    progress: ProgressUpdate | None = None,
) -> BatchScores:
    """Compute the scores of `ExactScorer` with one full forward pass for each channel.

    Args:
        model: a network with its head, in eval mode.
        inputs: B samples, on the model's device.
        targets: `[B, ...]`.
        taps: module names.
        loss: task loss; each sample is passed as a batch of one.
        channels: tap -> indices of the channels to score; all of them if None.
        progress: called with the number of further pairs of a sample and a channel.
    """
    with torch.no_grad():
        with Taps(model, taps) as recorder:
            plain = per_sample_losses(loss, _upcast_logits(model(inputs)), targets)
            features, dims = recorder.features(), recorder.channel_dims
        scores = {}
        for tap, output in features.items():
            which = torch.arange(output.shape[-1]) if channels is None else channels[tap]
            grown = [
                _ablated_losses(model, inputs, targets, tap, dims[tap], channel, loss, progress)
                for channel in which.tolist()
            ]
            scores[tap] = torch.stack(grown, dim=1) - plain.unsqueeze(1)
    return BatchScores(scores=scores, features=features)


def _ablated_losses(
    model: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    tap: str,
    channel_dim: int,
    channel: int,
    loss: Loss,
    progress: ProgressUpdate | None,
) -> Tensor:
    def switch_off(name: str, output: Tensor) -> Tensor:
        off = output.clone()
        off.select(channel_dim, channel).zero_()
        return off

    with Taps(model, [tap], edit=switch_off):
        losses = per_sample_losses(loss, _upcast_logits(model(inputs)), targets)
    if progress is not None:
        progress(len(losses))
    return losses


def _upcast_logits(logits: Tensor) -> Tensor:
    """Convert to double precision, if the device has it: differences of losses are small."""
    return logits.float() if logits.device.type == "mps" else logits.double()


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _scores_match(found: BatchScores, expected: BatchScores, logits: Tensor) -> bool:
    """Return whether scores agree up to rounding."""
    noise = LOGIT_ROUNDING * torch.finfo(logits.dtype).eps * (1 + logits.abs().max())
    return all(
        bool((found.scores[tap] - scores).abs().max() <= ROUNDING * scores.abs().max() + noise)
        for tap, scores in expected.scores.items()
    )


def _describe_difference(found: BatchScores, expected: BatchScores) -> str:
    """Describe the largest difference of scores, relative to the largest score of each tap."""
    return ", ".join(
        f"{float((found.scores[tap] - scores).abs().max() / scores.abs().max()):.1%} at {tap}"
        for tap, scores in expected.scores.items()
    )
