"""The channel attention of a run: from a file, or measured on its training images, once."""

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
from delta_transfer.errors import UserError
from delta_transfer.features.probe import LinearProbe
from delta_transfer.methods.registry import find_method
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

TEMPERATURE = 5.0  # as in the code of DELTA's authors
LOG_INTERVAL_S = 60.0  # seconds between two lines that say how far the estimator is

ProgressCallback = Callable[[int, int], None]
Normalization = tuple[float, float | None, bool]  # temperature, clip, floor


def attention_sample_order(config: TrainConfig, num_train_samples: int) -> list[int]:
    """Which of so many training images attention is measured on, in the order in which they come.

    The seed draws the order, so that the first few tell of all, and when it is time to stop.
    `ChannelAttention.influential_samples` are positions in it.

    Args:
        config: the options.
        num_train_samples: how many there are to learn from.
    """
    draw = torch.Generator().manual_seed(derive_seed(config.seed, "attention"))
    order: list[int] = torch.randperm(num_train_samples, generator=draw).tolist()
    return order[: config.attention_samples]


def estimate(
    prepared: RunSetup, config: TrainConfig, *, progress: ProgressCallback | None = None
) -> ChannelAttention:
    """Channel attention on the training images, with the head that the preset has.

    Scores that were measured before are taken from the user's cache, see `attention_cache`.

    Args:
        prepared: the images, the network and its probe.
        config: the options, of which `attention` names an estimator.
        progress: is told how much is done, and of how much; by default the log is.
    """
    train = prepared.task.train
    images = train.subset(attention_sample_order(config, len(train)))
    head, weighing = _estimation_head(prepared, config), _normalization(config)
    temperature, clip, floor = weighing
    method: Literal["gradient", "refined", "exact"] = config.attention  # type: ignore[assignment]

    def measure(partial: Path | None) -> ChannelAttention:
        return estimate_attention(
            prepared.source,
            prepared.loaders.with_config(config).eval_dataloader(images),
            probe=head,
            head=prepared.backbone.head,
            taps=prepared.taps,
            loss=prepared.task.task_type.loss,
            estimator=method,
            tolerance=config.attention_tolerance,
            temperature=temperature,
            score_clip=clip,
            clamp_negative_scores=floor,
            progress=progress or _log_progress(),
            checkpoint_path=partial if method == "exact" else None,
            seed=config.seed,
            distributed=True,
        )

    found = _with_normalization(
        load_or_estimate(_estimation_settings(prepared, config, images, head), measure), weighing
    )
    return dataclasses.replace(
        found, data=prepared.data_fingerprint, preprocessing=prepared.preprocessing
    )


def load_given_attention(prepared: RunSetup, config: TrainConfig) -> ChannelAttention | None:
    """The attention in the file that was named, if one was and the method needs it.

    Its temperature, clip and floor are the file's, unless others are asked for.

    Raises:
        UserError: if it was made of something else than what the run has; all of it is named.
    """
    if not find_method(config.method).needs_attention or config.attention in ESTIMATORS:
        return None
    attention = ChannelAttention.load(config.attention)
    differences = _differences(attention, prepared, config)
    if differences:
        raise UserError(
            f"--attention {config.attention} was made {'; '.join(differences)}. Give the model, "
            "images and options that it was made with, or let attention be estimated "
            "(--attention refined)"
        )
    return _with_normalization(attention, _normalization(config, attention))


def describe_attention(attention: ChannelAttention) -> str:
    """Over how many channels of each tap it is spread, in words.

    Args:
        attention: of a run.
    """
    taps = [
        f"{count:.1f} of {len(attention.scores[tap])} at {tap}"
        for tap, count in attention.effective_channels.items()
    ]
    return f"effective channels {', '.join(taps)}"


def _estimation_head(prepared: RunSetup, config: TrainConfig) -> LinearProbe:
    """The head that attention is measured with."""
    if not config.paper_protocol:
        return prepared.probe
    views, labels = prepared.features["train"]
    outputs = len(prepared.task.classes)
    return official_head(views[:, 0], labels, num_outputs=outputs, seed=config.seed)


def _normalization(config: TrainConfig, file: ChannelAttention | None = None) -> Normalization:
    """As the options say, and where they say nothing as the file or else as we do."""
    temperature, clip = config.attention_temperature, config.score_clip
    if temperature is None:
        temperature = TEMPERATURE if file is None else file.temperature
    if file is None:
        return temperature, clip, config.clamp_negative_scores
    return (
        temperature,
        file.score_clip if clip is None else clip,
        file.clamp_negative_scores or config.clamp_negative_scores,
    )


def _with_normalization(
    attention: ChannelAttention, normalization: Normalization
) -> ChannelAttention:
    """The same scores, made attention of otherwise; nobody knows how sure that one is."""
    if (
        attention.temperature,
        attention.score_clip,
        attention.clamp_negative_scores,
    ) == normalization:
        return attention
    temperature, clip, floor = normalization
    unknown = dict.fromkeys(attention.taps, math.nan)
    return dataclasses.replace(
        attention,
        temperature=temperature,
        score_clip=clip,
        clamp_negative_scores=floor,
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
        estimator=config.attention,
        tolerance=config.attention_tolerance,
        normalization=None if config.attention_tolerance is None else _normalization(config),
        seed=config.seed,
        batch_size=config.batch_size,
        device=prepared.device.type if world_size() == 1 else f"{world_size()} {prepared.device}",
    )


def _differences(attention: ChannelAttention, prepared: RunSetup, config: TrainConfig) -> list[str]:
    """What attention was made of that a run does not have, each in words."""
    found = []
    if attention.source != prepared.source_fingerprint:
        found.append(f"with other weights than {config.model} has")
    there = {name for name, _ in prepared.source.named_modules()}
    if config.taps != "auto" and set(attention.taps) != set(prepared.taps):
        found.append(
            f"at the taps {', '.join(attention.taps)}, this run has {', '.join(prepared.taps)} "
            "(leave --taps out for those of the file)"
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
    """Says now and then how far an estimator is; nothing where it takes no time."""
    last = time.perf_counter()
    first: tuple[float, int] | None = None

    def tell(done: int, total: int) -> None:
        nonlocal first, last
        now = time.perf_counter()
        if first is None:  # what an earlier call has done took none of this one's time
            first = (now, done)
        started, before = first
        if now - last >= LOG_INTERVAL_S and before < done < total:
            last = now
            minutes = (now - started) / (done - before) * (total - done) / 60
            percent = 100 * done // total
            logger.info("channel attention: %d%%, about %.0f minutes left", percent, minutes)

    return tell
