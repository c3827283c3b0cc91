"""Predict and evaluate with a saved run."""

import dataclasses
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.saved import CONFIG, load_model, load_task_type
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.data.task import SampleType, Split
from delta_transfer.errors import ModelError
from delta_transfer.inference.evaluation import Evaluation, evaluate_multiclass
from delta_transfer.inference.evaluation_per_target import PerTargetEvaluation, evaluate_per_target
from delta_transfer.inference.fault_tolerant_loader import ReadStats, fault_tolerant_loader
from delta_transfer.inference.input_files import find_inputs
from delta_transfer.inference.labelled_data import (
    check_samples,
    find_labelled_data,
    map_to_run_labels,
    real_path,
)
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.training.inference import CropAverage, iterate_predictions
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.devices import find_device, move_to_device

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"  # of a run


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one sample.

    Args:
        path: of the sample.
        values: class name -> probability, the most probable first; for binary targets, the
            probability of each, and for regression, the value of each, in the order of the outputs.
    """

    path: str
    values: dict[str, float]

    @property
    def probabilities(self) -> dict[str, float]:
        """The probabilities of classes or binary targets."""
        return self.values

    @property
    def top_class(self) -> str:
        """The most probable class."""
        return next(iter(self.values))


class Predictor:
    """The network of a finished run. Samples are preprocessed as for the run's test split.

    Args:
        run: the folder of the run, or its copy from the Hugging Face Hub, as written by push.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        batch_size: samples per batch.
        num_workers: processes that load samples; chosen by the number of cores if None.
        network: for a run of your own network: one of the same architecture, which is copied.

    Raises:
        UserError: if there is no finished run, or a number is out of its range.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 32,
        num_workers: int | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.run = Path(run)
        if not self.run.is_dir():
            raise ModelError(f"there is no run {run}: use the folder that train wrote")
        model = model_folder(self.run)
        self.backbone, self.classes = load_model(model, network=network)
        self.task_type = load_task_type(model)
        self.config = TrainConfig.load(self.run / CONFIG_FILE)
        self.device = find_device(device)
        move_to_device(self.backbone.module, self.device)
        options = dataclasses.replace(
            self.config,
            batch_size=batch_size,
            gradient_accumulation_steps=1,  # the run's may exceed this batch size
            num_workers=num_workers,
        )
        self._loaders = Dataloaders(self.backbone.input_spec, options, self.device)
        crops = self.config.paper_protocol
        self._network = CropAverage(self.backbone.module) if crops else self.backbone.module

    @property
    def _sample_type(self) -> SampleType:
        """What one input is called."""
        spec = self.backbone.input_spec
        if isinstance(spec, GraphSpec):
            return "molecule" if spec.node_features == "atoms" else "graph"
        return "image"

    def predict(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Return the predictions of `stream` as a list."""
        return list(self.stream(paths))

    def stream(self, paths: Sequence[str | Path]) -> Iterator[Prediction]:
        """Yield predictions for images, folders of images, and CSV files that list images.

        For a run on molecules: for SMILES, and files of SMILES. Predictions are yielded in the
        order of the inputs, while the next batch is being read. Unreadable samples are left out,
        with a warning at the end.

        Raises:
            DataError: if a path does not exist, a folder has no images, a CSV file is invalid, or
                no sample can be read.
        """
        files, read = find_inputs(
            paths, self.backbone.input_spec, smiles_column=self.config.smiles_column
        )
        if not files:
            return
        stats = ReadStats(files, self._sample_type)
        yield from self._predictions(Split(tuple(files), (0,) * len(files), read), stats)
        logger.info("%s", stats)

    def predict_sample(self, sample: Any, *, name: str) -> Prediction:
        """Return the prediction for one sample that has been read.

        Args:
            sample: such as an RGB image.
            name: of the sample.
        """
        split = Split((name,), (0,), lambda path: sample)
        (prediction,) = self._predictions(split, ReadStats(split.paths, self._sample_type))
        return prediction

    def _predictions(self, split: Split, stats: ReadStats) -> Iterator[Prediction]:
        for positions, rows in self._predict_batches(split, stats):
            for position, row in zip(positions, rows.tolist(), strict=True):
                values = dict(zip(self.classes, row, strict=True))
                if isinstance(self.task_type, Multiclass):
                    values = dict(sorted(values.items(), key=lambda pair: -pair[1]))
                yield Prediction(split.paths[position], values)

    def evaluate(
        self, data: str, *, data_root: str | None = None
    ) -> Evaluation | PerTargetEvaluation:
        """Evaluate the network on a test split, or on all samples if there is none.

        Unreadable samples are left out, with a warning.

        Args:
            data: a folder, a CSV file or a named data set, as for training. Of the run's own data,
                the run's test split is used.
            data_root: folder of named data sets; the run's if None.

        Raises:
            UserError: if it has classes that the network does not know, or another kind of labels,
                or no sample can be read.
        """
        if data_root is not None and not is_dataset_name(data):
            logger.warning("`data_root` is ignored: %s is not a named data set", data)
        found = find_labelled_data(
            self.config, data, data_root, of_molecules=self._sample_type == "molecule"
        )
        check_samples(data, found.split, self.backbone.input_spec)
        labelled = map_to_run_labels(data, found, self.classes, self.task_type)
        stats = ReadStats(labelled.paths, self._sample_type)
        batches = list(self._predict_batches(labelled, stats))
        evaluate = (
            functools.partial(evaluate_multiclass, metric_name=found.metric_name)
            if isinstance(self.task_type, Multiclass)
            else functools.partial(evaluate_per_target, task_type=self.task_type)
        )
        return evaluate(
            labelled.subset(position for positions, _ in batches for position in positions),
            torch.cat([rows for _, rows in batches]),
            self.classes,
            data=data if is_dataset_name(data) else str(real_path(data)),
            overlaps_training_data=found.overlaps_training_data,
            num_unreadable=len(stats.errors),
            samples_per_second=stats.samples_per_second,
        )

    def _predict_batches(
        self, split: Split, stats: ReadStats
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Yield positions in the split and their predictions, batch by batch."""
        loader = fault_tolerant_loader(self._loaders.test_dataloader(split))
        started = time.perf_counter()
        for rows, positions in iterate_predictions(
            self._network, stats.track(loader), self.task_type
        ):
            stats.elapsed_s += time.perf_counter() - started
            yield positions, rows
            started = time.perf_counter()  # exclude the time that the caller takes
        stats.report_unreadable()


def model_folder(run: Path) -> Path:
    """Return the folder of a run's network; in a run from the hub it is the run's own folder."""
    flat = (run / CONFIG).is_file() and (run / CONFIG_FILE).is_file()
    return run if flat and not (run / "model").exists() else run / "model"
