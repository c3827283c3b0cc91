"""Estimate the channel attention of a pretrained network on a new task."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.estimators.averaging import exact_estimate, first_order_estimate
from delta_transfer.attention.estimators.batches import Batches
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.attention.estimators.job import Estimate, EstimationJob
from delta_transfer.attention.estimators.parallel import replicate_on_devices
from delta_transfer.attention.estimators.refined import refined_estimate
from delta_transfer.attention.estimators.scorer import to_fast_memory_format
from delta_transfer.errors import ConfigError, unknown
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.probe import (
    LinearProbe,
    Loss,
    collect_features,
    find_head,
    fit_probe,
    replace_head,
)
from delta_transfer.features.stages import unwrap
from delta_transfer.features.taps import resolve_taps
from delta_transfer.functional import normalize_scores
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.module_state import (
    eval_mode,
    preserve_random_state,
    weights_fingerprint,
    without_parameter_gradients,
)

logger = logging.getLogger(__name__)

ESTIMATORS: dict[str, Callable[[EstimationJob], Estimate]] = {
    "gradient": first_order_estimate,
    "refined": refined_estimate,
    "exact": exact_estimate,
}
PRECISIONS = ("float32", "bfloat16")


def estimate_attention(
    model: nn.Module,
    loader: Iterable[tuple[Inputs, Tensor]],
    *,
    num_outputs: int | None = None,
    probe: LinearProbe | None = None,
    head: str = "auto",
    taps: str | Sequence[str] = "auto",
    loss: Loss = F.cross_entropy,
    estimator: Literal["gradient", "refined", "exact"] = "refined",
    samples: int | None = None,
    tolerance: float | None = None,
    temperature: float = 5.0,
    score_clip: float | None = None,
    clamp_negative_scores: bool = False,
    memory: int | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    devices: Sequence[torch.device | str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint_path: str | Path | None = None,
    seed: int = 0,
    distributed: bool = False,
) -> ChannelAttention:
    """Estimate how important each channel of a pretrained network is for a new task.

    The score of a channel is the increase of the task loss when the channel is ablated, averaged
    over samples, with a freshly trained head on the frozen pretrained network. Attention is the
    softmax of the scores, standardised per tap and divided by a temperature (Li et al., ICLR 2019,
    https://arxiv.org/abs/1901.09229, section 3.3). The model and the global random state are
    restored.

    Args:
        model: the pretrained network. Its own head is not used.
        loader: batches (inputs, targets) of training data without augmentation, in any order. It
            is iterated once; once more to fit the probe, and once more to draw samples.
        num_outputs: number of classes; not needed with a probe.
        probe: the freshly trained head; by default a linear probe is fitted.
        head: name of the module that returns the logits, or `"auto"`.
        taps: module names, glob patterns or `"auto"`.
        loss: task loss, the mean over a batch. It is computed for batches of one sample, so that
            class weights cancel.
        estimator: `"gradient"`, to first order in one forward and backward pass a batch;
            `"refined"`, the same corrected by exact scores of up to 64 samples; or `"exact"`, each
            channel ablated for each sample.
        samples: number of randomly drawn samples to average over; all if None.
        tolerance: stop when the attention of every tap has a relative standard error (`uncertainty`
            of the result) of at most this, after at least 3 batches and 20 samples; the loader must
            be in random order. `"refined"` uses all samples and logs whether the result is within
            the tolerance.
        temperature: softmax temperature; larger is more uniform. The authors use 5.
        score_clip: clip standardised scores to plus and minus this, before the temperature.
        clamp_negative_scores: set scores below zero to zero, before standardising.
        memory: bytes for a pass of `"exact"` and `"refined"`; the default depends on the device.
        precision: precision of `"exact"` scores; `"bfloat16"` is faster on GPUs that have it.
        devices: devices that each process a shard of every batch with a copy of the model; by
            default the model's device.
        progress: called with the work done and the total work, in units of about equal time; the
            total is 0 if the loader has no known length.
        checkpoint_path: file in which `"exact"` saves its state every 10 seconds until it is done.
            An interrupted call resumes from it if repeated with the same loss and the same samples
            in the same order; else it starts from scratch. The result is the same.
        seed: seed of the drawn samples, the probe's folds and the samples of `"refined"`.
        distributed: each process of a group (`torch.distributed`) scores its shard of each batch,
            and all return the same result. All must call this, with a probe and the same samples in
            the same order; `checkpoint_path` is ignored.

    Returns:
        Scores, attention and feature variance per tap.

    Raises:
        UserError: if a name is unknown, the loader is empty, there is neither `num_outputs` nor a
            probe, or the scores are not finite.
    """
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, list(ESTIMATORS))
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if probe is None and num_outputs is None:
        raise ConfigError("estimate_attention needs num_outputs (the number of classes) or a probe")
    distributed = distributed and world_size() > 1
    positive = {"temperature": temperature, "score_clip": score_clip, "tolerance": tolerance}
    _check(positive, {"samples": samples, "memory": memory})
    if checkpoint_path is not None and estimator != "exact":
        logger.warning("checkpoint_path is ignored: only the exact estimator writes a checkpoint")
    model = unwrap(model)
    names, head = resolve_taps(model, taps), find_head(model, head)
    source = weights_fingerprint(model, head=head)

    def normalize(scores: Tensor) -> Tensor:
        return normalize_scores(
            scores,
            temperature=temperature,
            score_clip=score_clip,
            clamp_negative_scores=clamp_negative_scores,
        )

    with _frozen_model(model) as stack:
        if probe is None:
            assert num_outputs is not None
            batches = ((to_fast_memory_format(inputs), targets) for inputs, targets in loader)
            features, targets = collect_features(model, batches, head=head)
            probe = fit_probe(features, targets, num_outputs=num_outputs, loss=loss, seed=seed)
        stack.enter_context(replace_head(model, head, probe))
        networks = replicate_on_devices(model, devices)
        for network in networks:
            stack.enter_context(preserve_random_state(network))
        settings = (source, head, names, estimator, samples, precision, seed, _name(loss))
        job = EstimationJob(
            networks=networks,
            batches=Batches(loader, samples=samples, seed=seed),
            taps=names,
            loss=loss,
            normalize=normalize,
            tolerance=tolerance,
            memory=memory,
            precision=precision,
            progress=progress,
            checkpoint=_make_checkpoint(checkpoint_path, settings, probe)
            if not distributed and estimator == "exact"
            else None,
            seed=seed,
            distributed=distributed,
        )
        result = ESTIMATORS[estimator](job)
    _log_result(estimator, result, tolerance)
    return ChannelAttention(
        scores=result.scores,
        standard_errors=result.standard_errors,
        variance=result.variance,
        temperature=temperature,
        score_clip=score_clip,
        clamp_negative_scores=clamp_negative_scores,
        estimator=estimator,
        samples=result.samples,
        source=source,
        head_weight=probe.weight.detach().cpu(),
        head_bias=probe.bias.detach().cpu(),
        influential_samples=result.influential_samples,
        uncertainty=result.uncertainty,
    )


@contextmanager
def _frozen_model(model: nn.Module) -> Iterator[ExitStack]:
    """Put the network in eval mode without gradients, with a stack for further contexts."""
    with (
        preserve_random_state(model),
        eval_mode(model),
        without_parameter_gradients(model),
        ExitStack() as stack,
    ):
        yield stack


def _check(positive: Mapping[str, float | None], counts: Mapping[str, int | None]) -> None:
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be positive, got {value}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ConfigError(f"{name} must be at least 1, got {count}")


def _make_checkpoint(
    path: str | Path | None, settings: tuple[object, ...], probe: LinearProbe
) -> EstimateCheckpoint | None:
    """Make the checkpoint of an estimate that depends on `settings`, the probe and the data."""
    if path is None:
        return None
    head = [
        tensor.detach().cpu().double().numpy().tobytes() for tensor in (probe.weight, probe.bias)
    ]
    key = fingerprint([json.dumps([*settings, torch.__version__]).encode(), *head])
    return EstimateCheckpoint(Path(path), fingerprint=key)


def _name(loss: Loss) -> str:
    """Return a name of the loss that is the same in another process."""
    own = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{own.__module__}.{own.__qualname__}"


def _log_result(estimator: str, result: Estimate, tolerance: float | None) -> None:
    """Log the estimator, the number of samples and the relative standard error."""
    errors = list(result.uncertainty.values())
    worst = math.nan if any(map(math.isnan, errors)) else max(errors)
    size = "not known" if math.isnan(worst) else f"up to {worst:.2g}"
    line = (
        f"channel attention: {estimator}, {result.samples} samples, relative standard error of the "
        f"attention {size}"
    )
    if tolerance is None:
        logger.info(line)
    elif worst <= tolerance:
        logger.info("%s: within the tolerance of %g", line, tolerance)
    else:
        logger.warning("%s: not within the tolerance of %g, use more samples", line, tolerance)
