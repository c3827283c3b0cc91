"""Load a run for the web app: its network, training images and pretrained network."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from delta_transfer.app import run_artifacts
from delta_transfer.app.differences import Source, measure_variance
from delta_transfer.app.explainer import Explainer
from delta_transfer.app.neighbours import NeighbourIndex, build_neighbour_index
from delta_transfer.backbones.base import InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.data.task import Split
from delta_transfer.errors import ConfigError, ModelError, UserError
from delta_transfer.features.taps import Taps
from delta_transfer.inference.fault_tolerant_loader import fault_tolerant_loader
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.preparation.taps import choose_taps
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.devices import move_to_device
from delta_transfer.utils.module_state import eval_mode
from delta_transfer.utils.paths import user_path

logger = logging.getLogger(__name__)

MAX_VARIANCE_SAMPLES = 64  # training images to measure the feature variance on, if it is unknown

ProgressCallback = Callable[[int, int], None]
ProgressBarFactory = Callable[[str, str], AbstractContextManager[ProgressCallback | None]]


def load_run(
    run: str | Path,
    *,
    examples: int,
    progress: ProgressBarFactory,
    data_root: str | None = None,
    device: str = "auto",
) -> Explainer:
    """Load a run and, if available, its training images and the pretrained network.

    Args:
        run: its folder.
        examples: most training images to search for the nearest ones.
        progress: shows a progress bar, like `progress_bar`.
        data_root: folder of named data sets; the run's if None.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.

    Raises:
        UserError: if there is no finished run, it is not an image classifier, or the data root
            is not a folder.
    """
    if data_root is not None and not user_path(data_root).is_dir():
        raise ConfigError(
            f"`data_root={data_root}` is not a folder: use the folder of the run's named data set, "
            "or leave it out"
        )
    predictor = Predictor(run, device=device, num_workers=0)
    spec = predictor.backbone.input_spec
    if not isinstance(spec, InputSpec) or not isinstance(predictor.task_type, Multiclass):
        raise ModelError(
            f"{run} is not an image classifier, and app supports nothing else: for molecules, use "
            "delta-transfer predict and the run's report.html"
        )
    if data_root is not None and not is_dataset_name(predictor.config.data):
        logger.warning(
            "`data_root=%s` is ignored: %s is not a named data set",
            data_root,
            predictor.config.data,
        )
    result = RunResult.load(run)
    config = dataclasses.replace(
        predictor.config,
        data_root=data_root or predictor.config.data_root,
        num_workers=0,
        batch_size=32,
        gradient_accumulation_steps=1,
    )
    loaders = Dataloaders(spec, config, predictor.device)
    taps = _taps(predictor, result)
    training = _training(predictor, config, most=examples)
    return Explainer(
        predictor=predictor,
        result=result,
        loaders=loaders,
        taps=taps,
        neighbours=_neighbours(predictor, training, loaders, progress),
        source=_source(predictor, training, config, loaders, taps),
    )


def _taps(predictor: Predictor, result: RunResult) -> dict[str, int]:
    """Return the taps of the run, or those that auto chooses, with their channel dimension."""
    backbone, network = predictor.backbone, predictor.backbone.module
    names = result.taps or choose_taps(predictor.config, backbone, network)
    with Taps(network, names) as taps, eval_mode(network), torch.no_grad():
        taps.record(backbone.input_spec.example().to(predictor.device))
        return dict(taps.channel_dims)


def _training(predictor: Predictor, config: TrainConfig, *, most: int) -> Split | str:
    """Return evenly spaced training images, or why there are none."""
    if most == 0:
        return "disabled by `examples=0`"
    try:
        found = run_artifacts.find_training(config, classes=predictor.classes)
    except (UserError, OSError) as error:
        return _missing("the nearest training images", error)
    return _some(found, most)


def _some(split: Split, most: int) -> Split:
    """Return evenly spaced samples of a split."""
    count = min(most, len(split))
    return split.subset(i * len(split) // count for i in range(count))


def _neighbours(
    predictor: Predictor,
    training: Split | str,
    loaders: Dataloaders,
    progress: ProgressBarFactory,
) -> NeighbourIndex | str:
    if isinstance(training, str):
        return training
    backbone = predictor.backbone
    try:
        with progress("training images", "images") as report_progress:
            return build_neighbour_index(
                backbone.module,
                backbone.head,
                training,
                load=loaders.eval_dataloader,
                classes=predictor.classes,
                progress=report_progress,
            )
    except UserError as error:
        return _missing("the nearest training images", error)


def _source(
    predictor: Predictor,
    training: Split | str,
    config: TrainConfig,
    loaders: Dataloaders,
    taps: Mapping[str, int],
) -> Source | str:
    """Return the pretrained network, or why it is not available."""
    spec = predictor.backbone.input_spec
    assert isinstance(spec, InputSpec)
    try:
        attention = run_artifacts.find_attention(predictor.run)
        network = run_artifacts.load_source(config, spec, attention=attention)
    except (UserError, OSError) as error:
        return _missing("differences to the pretrained network", error)
    move_to_device(network, predictor.device)
    if attention is not None and taps.keys() <= attention.variance.keys():
        return Source(network=network, variance=attention.variance)
    batches: list[Tensor] = []
    if isinstance(training, Split):
        some = _some(training, MAX_VARIANCE_SAMPLES)
        loader = fault_tolerant_loader(loaders.eval_dataloader(some))
        batches = [inputs for inputs, _ in loader if len(inputs)]
    variance = measure_variance(network, batches, taps) if batches else {}
    return Source(network=network, variance=variance)


def _missing(what: str, error: Exception) -> str:
    logger.warning("the page will not show %s: %s", what, error)
    return str(error)
