"""Channel attention of a pretrained network on a new task: which channels matter for it."""

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
from delta_transfer.errors import UserError, unknown
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
        loss: task loss, the mean over a batch. Each sample's is that of a batch of one, so that a
            mean that is weighted by class loses its weights.
        estimator: `"gradient"`, to first order in one forward and backward pass a batch;
            `"refined"`, that, corrected by exact scores of up to 64 samples; or `"exact"`, each
            channel switched off for each sample.
        samples: how many samples, drawn at random, the scores are averaged over; all if None.
        tolerance: end when the attention of every tap has a relative standard error (`uncertainty`
            of the result) of no more than this, after 3 batches and 20 samples at the earliest; the
            loader must be in random order. `"refined"` takes all samples and says at the end
            whether it is within the tolerance.
        temperature: of the softmax; larger is closer to uniform. The authors use 5.
        score_clip: limits standardised scores to plus and minus this, before the temperature.
        clamp_negative_scores: scores below zero count as zero, before standardising.
        memory: bytes that `"exact"` and `"refined"` may take for a pass; by default it is chosen.
        precision: of `"exact"` scores; `"bfloat16"` is faster on GPUs that have it.
        devices: each gets a copy of the model and a share of each batch; by default the model's.
        progress: called with the work done and all the work, in units that take about as long each;
            all is 0 where the loader does not say how many samples it has.
        checkpoint_path: a file in which `"exact"` keeps what it has, every 10 seconds, until it is
            done. A call that was broken off goes on from there if it is made again with the same
            loss, and the same samples come in the same order; else it starts anew. The result is
            the same.
        seed: of the draw of samples, of the probe's folds and of what `"refined"` draws.
        distributed: each process of a group (`torch.distributed`) scores its share of each batch,
            and all have the same result. All of them have to call this, with the same samples in
            the same order and a probe; `checkpoint_path` is ignored.

    Returns:
        Scores, attention and feature variance per tap.

    Raises:
        UserError: if a name is unknown, the loader is empty, there is neither `num_outputs` nor a
            probe, or the scores are no finite numbers.
    """
    if estimator not in ESTIMATORS:
        raise unknown("attention method", estimator, list(ESTIMATORS))
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if probe is None and num_outputs is None:
        raise UserError("estimate_attention needs num_outputs (how many classes) or a fitted probe")
    alone = not distributed or world_size() == 1
    positive = {"temperature": temperature, "score_clip": score_clip, "tolerance": tolerance}
    _check(positive, {"samples": samples, "memory": memory})
    if checkpoint_path is not None and estimator != "exact":
        logger.warning("checkpoint_path is ignored: only the exact estimator keeps what it has")
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

    with _frozen_model(model) as borrowed:
        if probe is None:
            assert num_outputs is not None
            batches = ((to_fast_memory_format(inputs), targets) for inputs, targets in loader)
            features, targets = collect_features(model, batches, head=head)
            probe = fit_probe(features, targets, num_outputs=num_outputs, loss=loss, seed=seed)
        borrowed.enter_context(replace_head(model, head, probe))
        networks = replicate_on_devices(model, devices)
        for network in networks:
            borrowed.enter_context(preserve_random_state(network))
        about = (source, head, names, estimator, samples, precision, seed, _name(loss))
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
            checkpoint=_make_checkpoint(checkpoint_path, about, probe)
            if alone and estimator == "exact"
            else None,
            seed=seed,
            distributed=not alone,
        )
        found = ESTIMATORS[estimator](job)
    _report(estimator, found, tolerance)
    return ChannelAttention(
        scores=found.scores,
        standard_errors=found.standard_errors,
        variance=found.variance,
        temperature=temperature,
        score_clip=score_clip,
        clamp_negative_scores=clamp_negative_scores,
        estimator=estimator,
        samples=found.samples,
        source=source,
        head_weight=probe.weight.detach().cpu(),
        head_bias=probe.bias.detach().cpu(),
        influential_samples=found.influential_samples,
        uncertainty=found.uncertainty,
    )


@contextmanager
def _frozen_model(model: nn.Module) -> Iterator[ExitStack]:
    """The network in eval mode and without gradients, and a stack for what else is borrowed."""
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
            raise UserError(f"{name} must be positive, got {value}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")


def _make_checkpoint(
    path: str | Path | None, about: tuple[object, ...], probe: LinearProbe
) -> EstimateCheckpoint | None:
    """The file of an estimate whose result depends on `about`, the probe and the data."""
    if path is None:
        return None
    head = [
        tensor.detach().cpu().double().numpy().tobytes() for tensor in (probe.weight, probe.bias)
    ]
    identity = fingerprint([json.dumps([*about, torch.__version__]).encode(), *head])
    return EstimateCheckpoint(Path(path), fingerprint=identity)


def _name(loss: Loss) -> str:
    """A name of a loss that is the same in another process."""
    own = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{own.__module__}.{own.__qualname__}"


def _report(estimator: str, found: Estimate, tolerance: float | None) -> None:
    """Says in the log what was done, and how sure it is."""
    errors = list(found.uncertainty.values())
    worst = math.nan if any(map(math.isnan, errors)) else max(errors)
    size = "not known" if math.isnan(worst) else f"up to {worst:.2g}"
    line = (
        f"channel attention: {estimator}, {found.samples} samples, relative standard error of the "
        f"attention {size}"
    )
    if tolerance is None:
        logger.info(line)
    elif worst <= tolerance:
        logger.info("%s: within the tolerance of %g", line, tolerance)
    else:
        logger.warning("%s: not within the tolerance of %g, take more samples", line, tolerance)
