"""A saved run put to use: predictions of samples, figures of labelled ones."""

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
from delta_transfer.backbones.saved import CONFIG, load_model, load_objective
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_named
from delta_transfer.data.task import Noun, Split
from delta_transfer.errors import UserError
from delta_transfer.inference.evaluation import Evaluation, measure
from delta_transfer.inference.evaluation_per_target import ColumnEvaluation, measure_columns
from delta_transfer.inference.fault_tolerant_loader import Tally, tolerant_loader
from delta_transfer.inference.input_files import find_asked
from delta_transfer.inference.labelled_data import (
    check_samples,
    find_labelled,
    in_own_labels,
    real_path,
)
from delta_transfer.metrics.objectives import Classes
from delta_transfer.training.inference import CropAverage, iterate_answers
from delta_transfer.training.loaders import evaluation_loader
from delta_transfer.utils.devices import find_device, place

logger = logging.getLogger(__name__)

OPTIONS = "config.yaml"  # of a run


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of one picture.

    Args:
        path: the picture.
        answers: class name -> probability, the most probable first; of questions, the probability
            of yes to each, and of values, each of them, in their order.
    """

    path: str
    answers: dict[str, float]

    @property
    def probabilities(self) -> dict[str, float]:
        """The answers of classes and questions."""
        return self.answers

    @property
    def best(self) -> str:
        """The most probable class."""
        return next(iter(self.answers))


class Predictor:
    """The network of a finished run. Pictures are prepared as for the run's own test.

    Args:
        run: the folder of the run, or one that push has made of it, downloaded from the hub.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if None.
        network: for a run of a network of your own: one of the same architecture, which is copied.

    Raises:
        UserError: if there is no finished run, or a number is out of its range.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 32,
        workers: int | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.run = Path(run)
        if not self.run.is_dir():
            raise UserError(f"there is no run {run}: give the folder that train wrote")
        model = model_folder(self.run)
        self.backbone, self.classes = load_model(model, network=network)
        self.objective = load_objective(model)
        self.config = TrainConfig.load(self.run / OPTIONS)
        self.device = find_device(device)
        place(self.backbone.module, self.device)
        self._loading = dataclasses.replace(
            self.config,
            batch_size=batch_size,
            workers=workers,
            device=device,  # type: ignore[arg-type]  # `find_device` has found it
        )
        crops = self.config.official
        self._network = CropAverage(self.backbone.module) if crops else self.backbone.module

    @property
    def _kind(self) -> Noun:
        """What it is asked about, one of them."""
        spec = self.backbone.input
        if isinstance(spec, GraphSpec):
            return "molecule" if spec.node_features == "atoms" else "graph"
        return "picture"

    def predict(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """`stream`, as a list."""
        return list(self.stream(paths))

    def stream(self, paths: Sequence[str | Path]) -> Iterator[Prediction]:
        """Predictions for files, all pictures in folders and those that CSV files list.

        Of a run on molecules: for SMILES, and those that files of SMILES list. They come in the
        order given, while the next ones are being read. What cannot be read is left out, with a
        warning at the end.

        Raises:
            UserError: if a path does not exist, a folder has no pictures, a CSV file is not as it
                must be, or no picture can be read.
        """
        files, read = find_asked(
            paths, self.backbone.input, smiles_column=self.config.smiles_column
        )
        if not files:
            return
        tally = Tally(files, self._kind)
        yield from self._predictions(Split(tuple(files), (0,) * len(files), read), tally)
        logger.info("%s", tally)

    def answer(self, sample: Any, *, name: str) -> Prediction:
        """The prediction for one sample that has been read.

        Args:
            sample: such as an RGB picture.
            name: what it is called.
        """
        split = Split((name,), (0,), lambda path: sample)
        (prediction,) = self._predictions(split, Tally(split.paths, self._kind))
        return prediction

    def _predictions(self, split: Split, tally: Tally) -> Iterator[Prediction]:
        for positions, rows in self._answers(split, tally):
            for position, row in zip(positions, rows.tolist(), strict=True):
                answers = dict(zip(self.classes, row, strict=True))
                if isinstance(self.objective, Classes):
                    answers = dict(sorted(answers.items(), key=lambda pair: -pair[1]))
                yield Prediction(split.paths[position], answers)

    def evaluate(self, data: str, *, data_root: str | None = None) -> Evaluation | ColumnEvaluation:
        """Measures the network on a test split, or on all pictures where there is none.

        Pictures that cannot be read are left out, with a warning.

        Args:
            data: a folder, a CSV file or a named data set, as for training. Of the run's own data,
                the very test split of the run counts.
            data_root: where named data sets lie or are downloaded to; that of the run if None.

        Raises:
            UserError: if it has classes that the network does not know, or another kind of labels,
                or no picture can be read.
        """
        if data_root is not None and not is_named(data):
            logger.warning("--data-root is ignored: %s is no named data set", data)
        found = find_labelled(self.config, data, data_root, of_molecules=self._kind == "molecule")
        check_samples(data, found.split, self.backbone.input)
        labelled = in_own_labels(data, found, self.classes, self.objective)
        tally = Tally(labelled.paths, self._kind)
        answers = list(self._answers(labelled, tally))
        judge = (
            functools.partial(measure, metric=found.metric)
            if isinstance(self.objective, Classes)
            else functools.partial(measure_columns, objective=self.objective)
        )
        return judge(
            labelled.subset(position for positions, _ in answers for position in positions),
            torch.cat([rows for _, rows in answers]),
            self.classes,
            data=data if is_named(data) else str(real_path(data)),
            seen=found.seen,
            left_out=len(tally.errors),
            per_second=tally.per_second,
        )

    def _answers(self, split: Split, tally: Tally) -> Iterator[tuple[list[int], Tensor]]:
        """Positions in the split and the answers to them, batch by batch."""
        loader = tolerant_loader(evaluation_loader(split, self.backbone.input, self._loading))
        started = time.perf_counter()
        for rows, positions in iterate_answers(self._network, tally.count(loader), self.objective):
            tally.seconds += time.perf_counter() - started
            yield positions, rows
            started = time.perf_counter()  # what the caller does meanwhile does not count
        tally.conclude()


def model_folder(run: Path) -> Path:
    """Where the network of a run lies: in a folder of its own or, from the hub, in the run's."""
    flat = (run / CONFIG).is_file() and (run / OPTIONS).is_file()
    return run if flat and not (run / "model").exists() else run / "model"
