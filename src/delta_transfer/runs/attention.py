"""The channel attention of a run: loaded from a file, or estimated on its training images."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from delta_transfer.attention import ESTIMATORS, estimate_attention
from delta_transfer.attention.cache import EstimationSettings, load_or_estimate
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.official import official_head
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Split
from delta_transfer.errors import ConfigError
from delta_transfer.features.probe import LinearProbe
from delta_transfer.methods.registry import method_of
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

TEMPERATURE = 5.0  # as in the code of DELTA's authors
LOG_INTERVAL_S = 60.0  # seconds between two log lines of progress

ProgressCallback = Callable[[int, int], None]
Normalization = tuple[float, float | None, bool]  # temperature, score_clip, clamp_negative_scores


def attention_sample_order(config: TrainConfig, num_train_samples: int) -> list[int]:
    """Return the indices of the training images for the estimate, in the order of their use.

    The order is random, so that the first images are representative and convergence can be tested.
    `ChannelAttention.influential_samples` are positions in it.

    Args:
        config: the options.
        num_train_samples: number of training images.
    """
    draw = torch.Generator().manual_seed(derive_seed(config.seed, "attention"))
    order: list[int] = torch.randperm(num_train_samples, generator=draw).tolist()
    return order[: config.attention_samples]


def estimate(
    prepared: RunSetup, config: TrainConfig, *, progress: ProgressCallback | None = None
) -> ChannelAttention:
    """Estimate channel attention on the training images, with the head of the preset.

    Scores in the user's cache are used again, see `attention.cache`.

    Args:
        prepared: the images, the network and its probe.
        config: the options; `attention` is the name of an estimator.
        progress: called with the work done and the total work; progress is logged by default.
    """
    train = prepared.task.train
    images = train.subset(attention_sample_order(config, len(train)))
    head, normalization = _estimation_head(prepared, config), _normalization(config)
    temperature, score_clip, clamp_negative_scores = normalization
    estimator: Literal["gradient", "refined", "exact"] = config.attention_source  # type: ignore[assignment]

    def run_estimator(checkpoint_path: Path | None) -> ChannelAttention:
        return estimate_attention(
            prepared.source,
            prepared.loaders.with_config(config).eval_dataloader(images),
            probe=head,
            head=prepared.backbone.head,
            taps=prepared.taps,
            loss=prepared.task.task_type.loss,
            estimator=estimator,
            tolerance=config.attention_tolerance,
            temperature=temperature,
            score_clip=score_clip,
            clamp_negative_scores=clamp_negative_scores,
            progress=progress or _log_progress(),
            checkpoint_path=checkpoint_path if estimator == "exact" else None,
            seed=config.seed,
            distributed=True,
        )

    found = _with_normalization(
        load_or_estimate(_estimation_settings(prepared, config, images, head), run_estimator),
        normalization,
    )
    return dataclasses.replace(
        found, data=prepared.data_fingerprint, preprocessing=prepared.preprocessing
    )


def load_given_attention(prepared: RunSetup, config: TrainConfig) -> ChannelAttention | None:
    """Load the attention file of the options; None if there is none or the method needs none.

    Temperature, score clip and clamping are those of the file, unless the options set them.

    Raises:
        ConfigError: if the file does not match the run; all differences are listed.
        DataError: if the file is missing, damaged or of another format.
    """
    if not method_of(config).needs_attention or config.attention_source in ESTIMATORS:
        return None
    attention = ChannelAttention.load(config.attention)
    differences = _differences(attention, prepared, config)
    if differences:
        raise ConfigError(
            f"`attention={config.attention}` was estimated {'; '.join(differences)}: use the same "
            "model, images and options, or estimate it (`attention=refined`)"
        )
    return _with_normalization(attention, _normalization(config, attention))


def describe_attention(attention: ChannelAttention) -> str:
    """Describe the number of effective channels of each tap."""
    taps = [
        f"{count:.1f} of {len(attention.scores[tap])} at {tap}"
        for tap, count in attention.effective_channels.items()
    ]
    return f"effective channels {', '.join(taps)}"


def _estimation_head(prepared: RunSetup, config: TrainConfig) -> LinearProbe:
    """Return the head that attention is estimated with."""
    if not config.paper_protocol:
        return prepared.probe
    views, labels = prepared.features["train"]
    outputs = len(prepared.task.classes)
    return official_head(views[:, 0], labels, num_outputs=outputs, seed=config.seed)


def _normalization(config: TrainConfig, file: ChannelAttention | None = None) -> Normalization:
    """Return the normalization of the options, with defaults from the file or else our own."""
    temperature, score_clip = config.attention_temperature, config.score_clip
    if temperature is None:
        temperature = TEMPERATURE if file is None else file.temperature
    if file is None:
        return temperature, score_clip, config.clamp_negative_scores
    return (
        temperature,
        file.score_clip if score_clip is None else score_clip,
        file.clamp_negative_scores or config.clamp_negative_scores,
    )


def _with_normalization(
    attention: ChannelAttention, normalization: Normalization
) -> ChannelAttention:
    """Normalize the same scores in another way; the uncertainty of the result is not known."""
    if (
        attention.temperature,
        attention.score_clip,
        attention.clamp_negative_scores,
    ) == normalization:
        return attention
    temperature, score_clip, clamp_negative_scores = normalization
    unknown = dict.fromkeys(attention.taps, math.nan)
    return dataclasses.replace(
        attention,
        temperature=temperature,
        score_clip=score_clip,
        clamp_negative_scores=clamp_negative_scores,
        uncertainty=unknown,
    )


def _estimation_settings(
    prepared: RunSetup, config: TrainConfig, split: Split, head: LinearProbe
) -> EstimationSettings:
    tensors = [part.detach().cpu() for part in (head.weight, head.bias)]
    return EstimationSettings(
        weights_fingerprint=prepared.source_fingerprint,
        head_fingerprint=fingerprint(tensor.numpy().tobytes() for tensor in tensors),
        taps=prepared.taps,
        data_fingerprint=fingerprint(
            f"{prepared.content_hashes[path]} {label}\n".encode()
            for path, label in zip(split.paths, split.labels, strict=True)
        ),
        task_type=repr(prepared.task.task_type),
        preprocessing=prepared.preprocessing,
        estimator=config.attention_source,
        tolerance=config.attention_tolerance,
        normalization=None if config.attention_tolerance is None else _normalization(config),
        seed=config.seed,
        batch_size=config.batch_size,
        device=prepared.device.type if world_size() == 1 else f"{world_size()} {prepared.device}",
    )


def _differences(attention: ChannelAttention, prepared: RunSetup, config: TrainConfig) -> list[str]:
    """Describe what attention was estimated with that differs from the run."""
    found = []
    if attention.source != prepared.source_fingerprint:
        found.append(f"with other weights than {config.model} has")
    there = {name for name, _ in prepared.source.named_modules()}
    if config.taps != "auto" and set(attention.taps) != set(prepared.taps):
        found.append(
            f"at the taps {', '.join(attention.taps)}, this run has {', '.join(prepared.taps)} "
            "(leave `taps` out for those of the file)"
        )
    elif not there.issuperset(attention.taps):
        found.append(f"at the taps {', '.join(attention.taps)}, not all of which the model has")
    if attention.data not in (None, prepared.data_fingerprint):
        found.append(f"on other images than those of {prepared.task.name}")
    own = prepared.preprocessing
    known = own if attention.preprocessing is None else attention.preprocessing
    for name in {**own, **known}:
        if known.get(name) != own.get(name):
            found.append(f"at {name} {known.get(name)}, this run has {own.get(name)}")
    return found


def _log_progress() -> ProgressCallback:
    """Return a callback that logs the progress of a slow estimator once a minute."""
    last = time.perf_counter()
    first: tuple[float, int] | None = None

    def log(done: int, total: int) -> None:
        nonlocal first, last
        now = time.perf_counter()
        if first is None:  # a resumed call did not spend time on earlier work
            first = (now, done)
        started, before = first
        if now - last >= LOG_INTERVAL_S and before < done < total:
            last = now
            minutes = (now - started) / (done - before) * (total - done) / 60
            percent = 100 * done // total
            logger.info("channel attention: %d%%, about %.0f minutes left", percent, minutes)

    return log
