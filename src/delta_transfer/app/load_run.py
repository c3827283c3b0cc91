"""A run is opened for the page: its network, and what is still there of what it was made from."""

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
from delta_transfer.errors import UserError
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

MAX_VARIANCE_SAMPLES = (
    64  # training images that the unit of differences is measured on, if it is not known
)

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
    """Loads a run and, if they are there, its training images and the pretrained network.

    Args:
        run: its folder.
        examples: training images to look for the nearest among, at most.
        progress: shows how much is done, as `console.progress_bar` does.
        data_root: where a named data set lies; that of the run if None.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.

    Raises:
        UserError: if there is no finished run, it is not on images with classes, or the data root
            is no folder.
    """
    if data_root is not None and not user_path(data_root).is_dir():
        raise UserError(
            f"--data-root {data_root} is no folder: give the one in which the run's named data set "
            "lies, or leave it out"
        )
    predictor = Predictor(run, device=device, num_workers=0)
    spec = predictor.backbone.input_spec
    if not isinstance(spec, InputSpec) or not isinstance(predictor.task_type, Multiclass):
        raise UserError(
            f"{run} is no run on images with classes, and app shows these alone: for molecules "
            "there are delta-transfer predict and the run's report.html"
        )
    if data_root is not None and not is_dataset_name(predictor.config.data):
        logger.warning("--data-root is ignored: %s is no named data set", predictor.config.data)
    result = RunResult.load(run)
    loading = dataclasses.replace(
        predictor.config,
        data_root=data_root or predictor.config.data_root,
        device=device,  # type: ignore[arg-type]  # Predictor has found it
        num_workers=0,
        batch_size=32,
        gradient_accumulation_steps=1,
    )
    taps = _taps(predictor, result)
    training = _training(predictor, loading, most=examples, refitted=result.refitted)
    return Explainer(
        predictor=predictor,
        result=result,
        loader_config=loading,
        taps=taps,
        neighbours=_neighbours(predictor, training, loading, progress),
        source=_source(predictor, training, loading, taps),
    )


def _taps(predictor: Predictor, result: RunResult) -> dict[str, int]:
    """The taps of the run, or those that auto takes, and where their channels are."""
    backbone, network = predictor.backbone, predictor.backbone.module
    names = result.taps or choose_taps(predictor.config, backbone, network)
    with Taps(network, names) as taps, eval_mode(network), torch.no_grad():
        taps.record(backbone.input_spec.example().to(predictor.device))
        return dict(taps.channel_dims)


def _training(
    predictor: Predictor, loader_config: TrainConfig, *, most: int, refitted: bool
) -> Split | str:
    """Training images from all over them, or why there are none."""
    if most == 0:
        return "none were asked for (--examples 0)"
    try:
        found = run_artifacts.find_training(
            loader_config, refitted=refitted, classes=predictor.classes
        )
    except (UserError, OSError) as error:
        return _missing("the nearest training images", error)
    return _some(found, most)


def _some(split: Split, most: int) -> Split:
    """Samples from all over a split."""
    count = min(most, len(split))
    return split.subset(i * len(split) // count for i in range(count))


def _neighbours(
    predictor: Predictor,
    training: Split | str,
    loader_config: TrainConfig,
    progress: ProgressBarFactory,
) -> NeighbourIndex | str:
    if isinstance(training, str):
        return training
    backbone = predictor.backbone
    try:
        with progress("training images", "images") as told:
            return build_neighbour_index(
                backbone.module,
                backbone.head,
                training,
                load=Dataloaders(
                    backbone.input_spec, loader_config, predictor.device
                ).eval_dataloader,
                classes=predictor.classes,
                progress=told,
            )
    except UserError as error:
        return _missing("the nearest training images", error)


def _source(
    predictor: Predictor, training: Split | str, loader_config: TrainConfig, taps: Mapping[str, int]
) -> Source | str:
    """The pretrained network, or why it cannot be had."""
    spec = predictor.backbone.input_spec
    assert isinstance(spec, InputSpec)
    try:
        network = run_artifacts.load_source(loader_config, spec, run=predictor.run)
        attention = run_artifacts.find_attention(predictor.run)
    except (UserError, OSError) as error:
        return _missing("differences to the pretrained network", error)
    move_to_device(network, predictor.device)
    if attention is not None and taps.keys() <= attention.variance.keys():
        return Source(network=network, variance=attention.variance)
    batches: list[Tensor] = []
    if isinstance(training, Split):
        loaders = Dataloaders(spec, loader_config, predictor.device)
        some = _some(training, MAX_VARIANCE_SAMPLES)
        loader = fault_tolerant_loader(loaders.eval_dataloader(some))
        batches = [inputs for inputs, _ in loader if len(inputs)]
    variance = measure_variance(network, batches, taps) if batches else {}
    return Source(network=network, variance=variance)


def _missing(what: str, error: Exception) -> str:
    logger.warning("the page goes without %s: %s", what, error)
    return str(error)
