"""A cache of channel attention in the user's cache folder, keyed by everything it depends on."""

import dataclasses
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.utils.distributed import is_rank_zero, run_on_main_and_broadcast
from delta_transfer.utils.files import cache_root, fingerprint

logger = logging.getLogger(__name__)

_FORMAT = 2  # raise this when the same settings would give other scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimationSettings:
    """Everything that channel scores depend on, down to the last bit.

    Args:
        weights_fingerprint: fingerprint of the network's weights.
        head_fingerprint: fingerprint of the head's weights. The head was trained on the network's
            features, so this also separates networks with equal weights and other layers.
        taps: names of the tapped modules.
        data_fingerprint: fingerprint of the images and their classes, in order.
        task_type: the task type, as text.
        preprocessing: preprocessing of the images, as JSON.
        estimator: name of the estimator.
        tolerance: its tolerance.
        normalization: temperature, score clip and whether negative scores are clamped, which
            decide when the estimate converges; None without a tolerance.
        seed: seed of the estimator.
        batch_size: images per batch.
        device: type of the device; and the number of devices, if several.
    """

    weights_fingerprint: str
    head_fingerprint: str
    taps: tuple[str, ...]
    data_fingerprint: str
    task_type: str
    preprocessing: Mapping[str, Any]
    estimator: str
    tolerance: float | None
    normalization: tuple[float, float | None, bool] | None
    seed: int
    batch_size: int
    device: str

    @property
    def cache_key(self) -> str:
        """SHA-256 of all fields and of the versions of this package and torch.

        A development version counts as the release it leads to, so that a commit does not
        invalidate the cache.
        """
        ours = importlib.metadata.version("delta-transfer").partition(".dev")[0]
        versions = {"delta-transfer": ours, "torch": importlib.metadata.version("torch")}
        settings = {"format": _FORMAT, "versions": versions, **dataclasses.asdict(self)}
        return fingerprint([json.dumps(settings, sort_keys=True).encode()])


def cache_folder() -> Path:
    """Return the folder of the cache: `attention` in `cache_root`."""
    return cache_root() / "attention"


def load_or_estimate(
    settings: EstimationSettings, estimate: Callable[[Path | None], ChannelAttention]
) -> ChannelAttention:
    """Return attention from the cache, or estimate and cache it.

    A damaged or foreign file is replaced. Failing to read or write the cache is not an error.

    Args:
        settings: settings of the estimate.
        estimate: makes the estimate. It is called with the path for a checkpoint; None if the
            cache is not writable.

    Returns:
        The attention; its `data`, `preprocessing`, temperature, score clip and clamping may be
        those of another run.

    Raises:
        KeyboardInterrupt: if the user interrupts it; the message says whether it can be resumed.
    """
    folder, key = cache_folder(), settings.cache_key
    file = folder / f"{key}.safetensors"
    found = run_on_main_and_broadcast(lambda: _load(file, key))
    if found is not None:
        logger.info("channel attention: cached estimate %s", file)
        return found
    checkpoint_path = folder / f"{key}.checkpoint"
    try:
        found = estimate(checkpoint_path if _is_writable(folder) else None)
    except KeyboardInterrupt as stop:
        if checkpoint_path.is_file():
            raise KeyboardInterrupt("interrupted: rerun the same command to resume") from stop
        raise
    try:
        if is_rank_zero():
            dataclasses.replace(found, data=key).save(file)
    except OSError as error:
        logger.debug("channel attention is not cached: %s", error)
    return found


def _load(file: Path, key: str) -> ChannelAttention | None:
    """Read a file of the cache; None if it is missing, damaged or of another key."""
    try:
        if not file.is_file():
            return None
        found = ChannelAttention.load(file)
        if found.data != key:
            raise ValueError("its key is another")
        assert found.attention  # cannot be computed from scores that are not numbers
    except Exception as error:  # a damaged file may raise anything
        logger.debug("%s is estimated again: %s: %s", file, type(error).__name__, error)
        return None
    return found


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.debug("channel attention cannot be cached: %s", error)
        return False
    return os.access(folder, os.W_OK | os.X_OK)
