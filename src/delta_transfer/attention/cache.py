"""Channel attention that was measured before, in the user's cache, found by what it depends on."""

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

_FORMAT = 1  # to be raised where the same measurement would give other scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimationSettings:
    """Everything that the scores of channels depend on, down to the last bit.

    Args:
        weights_fingerprint: fingerprint of the network's weights.
        head_fingerprint: fingerprint of the head's. It was trained on what the network makes of the
            images, so that it tells networks apart that have the same weights and compute
            something else.
        taps: the modules that are tapped.
        data_fingerprint: fingerprint of the images and their classes, in the order in which they
            come.
        task_type: what is to be told of them, as text.
        preprocessing: how they are prepared, as JSON.
        estimator: what measures.
        tolerance: where it stops.
        normalization: what attention, which is to converge, is made of scores by: temperature, clip
            and floor; None where it measures on all images, and these decide nothing.
        seed: of what the estimator draws.
        batch_size: images at a time.
        device: what it runs on, by its kind; and how many of them, if several.
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
        """SHA-256 of all this, and of the versions of what measures.

        Of ours a development version is the release that it leads to: no commit measures anew.
        """
        ours = importlib.metadata.version("delta-transfer").partition(".dev")[0]
        versions = {"delta-transfer": ours, "torch": importlib.metadata.version("torch")}
        told = {"format": _FORMAT, "versions": versions, **dataclasses.asdict(self)}
        return fingerprint([json.dumps(told, sort_keys=True).encode()])


def cache_folder() -> Path:
    """Where measured attention is kept: `attention` in `cache_root`."""
    return cache_root() / "attention"


def load_or_estimate(
    settings: EstimationSettings, estimate: Callable[[Path | None], ChannelAttention]
) -> ChannelAttention:
    """The attention of a measurement that was made before, or else makes it and keeps it.

    A file that is damaged, or another's, is replaced. What cannot be read or written is no error.

    Args:
        settings: what to measure.
        estimate: measures it. It is given a file for what it would go on from if it were broken
            off, None where none can be written.

    Returns:
        The attention; its `data`, `preprocessing`, temperature, clip and floor may be those of
        another run.

    Raises:
        KeyboardInterrupt: if the user breaks it off; it says so where something is kept.
    """
    folder, key = cache_folder(), settings.cache_key
    file = folder / f"{key}.safetensors"
    found = run_on_main_and_broadcast(lambda: _load(file, key))
    if found is not None:
        logger.info("channel attention: measured before, %s", file)
        return found
    partial = folder / f"{key}.checkpoint"
    try:
        found = estimate(partial if _is_writable(folder) else None)
    except KeyboardInterrupt as stop:
        if partial.is_file():
            raise KeyboardInterrupt(
                "interrupted: the same command goes on where it stopped"
            ) from stop
        raise
    try:
        if is_rank_zero():
            dataclasses.replace(found, data=key).save(file)
    except OSError as error:
        logger.debug("channel attention is not kept for other runs: %s", error)
    return found


def _load(file: Path, key: str) -> ChannelAttention | None:
    """What the file holds; None if it is not there, or not what was kept under the key."""
    try:
        if not file.is_file():
            return None
        found = ChannelAttention.load(file)
        if found.data != key:
            raise ValueError("it holds another's")
        assert found.attention  # can be computed: the scores are numbers
    except Exception as error:  # whatever a damaged file makes its reader stumble over
        logger.debug("%s is measured anew: %s: %s", file, type(error).__name__, error)
        return None
    return found


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.debug("channel attention cannot be kept for other runs: %s", error)
        return False
    return os.access(folder, os.W_OK | os.X_OK)
