"""A saved run put to use: predictions of samples, figures of labelled ones."""

import dataclasses
import functools
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.asked import find_asked
from delta_transfer.backbones import GraphSpec
from delta_transfer.backbones.saved import load_model, load_objective
from delta_transfer.config import TrainConfig
from delta_transfer.data import (
    COLLECTIONS,
    SOURCES,
    Metric,
    MoleculeOptions,
    Split,
    Task,
    load_labelled,
    load_task,
)
from delta_transfer.data.base import Label, Noun
from delta_transfer.data.graph_sources import MOLECULENET
from delta_transfer.data.molecule_options import NOTHING_SAID
from delta_transfer.data.splits import DEFAULT_TEST_SPLIT
from delta_transfer.devices import find_device, place
from delta_transfer.errors import UserError
from delta_transfer.evaluation import Evaluation, measure
from delta_transfer.evaluation_columns import ColumnEvaluation, measure_columns
from delta_transfer.loaders import evaluation_loader
from delta_transfer.objective import BinaryTasks, Classes
from delta_transfer.prepare import molecule_options
from delta_transfer.reading import Tally, tolerant_loader
from delta_transfer.training import CropAverage
from delta_transfer.training.inference import iterate_answers

logger = logging.getLogger(__name__)


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
        run: the folder of the run.
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
        self.backbone, self.classes = load_model(self.run / "model", network=network)
        self.objective = load_objective(self.run / "model")
        self.config = TrainConfig.load(self.run / "config.yaml")
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
        split, tally = Split(tuple(files), (0,) * len(files), read), Tally(files, self._kind)
        for positions, rows in self._answers(split, tally):
            for position, row in zip(positions, rows.tolist(), strict=True):
                answers = dict(zip(self.classes, row, strict=True))
                if isinstance(self.objective, Classes):
                    answers = dict(sorted(answers.items(), key=lambda pair: -pair[1]))
                yield Prediction(files[position], answers)
        logger.info("%s", tally)

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
        if data_root is not None and not _is_named(data):
            logger.warning("--data-root is ignored: %s is no named data set", data)
        classes, split, metric, seen = self._labelled(data, data_root or self.config.data_root)
        self._check_samples(data, split)
        self._check_known(data, classes, split)
        tally = Tally(split.paths, self._kind)
        answers = list(self._answers(split, tally))
        kept = split.subset(position for positions, _ in answers for position in positions)
        labelled = dataclasses.replace(kept, labels=self._own_labels(classes, kept))
        judge = (
            functools.partial(measure, metric=metric)
            if isinstance(self.objective, Classes)
            else functools.partial(measure_columns, objective=self.objective)
        )
        return judge(
            labelled,
            torch.cat([rows for _, rows in answers]),
            self.classes,
            data=data if _is_named(data) else str(_real(data)),
            seen=seen,
            left_out=len(tally.errors),
            per_second=tally.per_second,
        )

    def _check_known(self, data: str, classes: Sequence[str], split: Split) -> None:
        """Checks that the network can answer what the labels of some data say.

        Raises:
            UserError: if it cannot.
        """
        if isinstance(split.labels[0], int) != isinstance(self.objective, Classes):
            kind = "classes" if isinstance(split.labels[0], int) else "questions or values"
            raise UserError(
                f"{data} has {kind}, and the run was trained on {self.objective.outputs}: "
                "give data of the same kind"
            )
        strange = sorted(set(classes) - set(self.classes))
        known = ", ".join(self.classes)
        if strange and isinstance(self.objective, Classes):
            raise UserError(
                f"{data} has classes that the run does not know: {', '.join(strange)}; "
                f"it knows {known}"
            )
        if len(strange) == len(classes):
            raise UserError(f"{data} has none of the columns that the run answers: {known}")
        if isinstance(self.objective, BinaryTasks):
            answers = self._answered(classes, split)
            if not bool(((answers == 0) | (answers == 1) | torch.isnan(answers)).all()):
                raise UserError(
                    f"{data} has values, and the run answers with no or yes ({known}): give 0 or 1"
                )

    def _check_samples(self, data: str, split: Split) -> None:
        """Checks that the network takes what some data is of.

        Raises:
            UserError: if it does not.
        """
        spec, first = self.backbone.input, _first(split)
        graphs = hasattr(first, "edge_index")
        if graphs != isinstance(spec, GraphSpec):
            there, taken = ("graphs", "pictures") if graphs else ("pictures", "graphs")
            raise UserError(f"{data} is of {there}, and the network of this run takes {taken}")
        if isinstance(spec, GraphSpec) and GraphSpec.of(first.x) != spec:
            raise UserError(
                f"{data} describes a node by {first.x.shape[1]} numbers, and the network of this "
                f"run by {spec.columns}: give data of the same kind"
            )

    def _own_labels(self, classes: Sequence[str], split: Split) -> tuple[Label, ...]:
        """The labels by the network's own classes, or in the order of its outputs."""
        if isinstance(self.objective, Classes):
            return tuple(self.classes.index(classes[label]) for label in split.class_indices)
        return tuple(tuple(row) for row in self._answered(classes, split).tolist())

    def _answered(self, classes: Sequence[str], split: Split) -> Tensor:
        """What is known of each of the network's outputs `[N, K]`, by the names of the columns."""
        known = [dict(zip(classes, row, strict=True)) for row in split.targets.tolist()]
        return torch.tensor([[row.get(name, math.nan) for name in self.classes] for row in known])

    def _labelled(
        self, data: str, data_root: str | None
    ) -> tuple[Sequence[str], Split, Metric, bool]:
        """Class names, pictures, the data set's figure, and whether they may have been seen."""
        metric: Metric = "accuracy"
        named = _is_named(data)
        own = self._is_own(data)
        if own or named:
            # The run's own data: the same test split, also where the seed drew it.
            test_split = self.config.test_split if own else DEFAULT_TEST_SPLIT
            task = self._task(data, test_split, data_root if named else None)
            metric = task.metric
            if task.test is not None:
                return task.classes, task.test, metric, False
        classes, split, apart = load_labelled(
            data,
            seed=self.config.seed,
            test_split=self.config.test_split,
            data_root=data_root,
            molecules=self._molecules(data),
        )
        seen = own or (not named and not apart and self._has_seen(data, split))
        return classes, split, metric, seen

    def _has_seen(self, data: str, split: Split) -> bool:
        """Whether some pictures are from the run's folder, but not from its test split."""
        if not _real(data).is_relative_to(_real(self.config.data)):
            return False
        try:
            test = self._task(self.config.data, self.config.test_split, None).test
        except UserError:  # the folder is no longer what it was: nobody knows
            return True
        return test is None or not _located(data, split) <= _located(self.config.data, test)

    def _task(self, data: str, test_split: str, data_root: str | None) -> Task:
        config = self.config
        return load_task(
            data,
            seed=config.seed,
            val_fraction=config.val_fraction,
            test_split=test_split,
            data_root=data_root,
            molecules=self._molecules(data),
        )

    def _molecules(self, data: str) -> MoleculeOptions:
        """What the run says of molecules, if that can be of this data: a file has its columns.

        Raises:
            UserError: if the run is on molecules and the data cannot be.
        """
        options = molecule_options(self.config)
        if self._is_own(data):
            return options
        if self._kind != "molecule" or _is_named(data):
            return NOTHING_SAID
        if Path(data).suffix.lower() != ".csv":
            raise UserError(
                f"'{data}' is no CSV file: this run is on molecules; give a CSV file with a column "
                f"of SMILES, or {MOLECULENET}NAME"
            )
        return dataclasses.replace(options, smiles_column=options.smiles_column or "smiles")

    def _is_own(self, data: str) -> bool:
        """Whether it is what the run was trained on, under another name perhaps."""
        own = self.config.data
        if _is_named(data) or _is_named(own):
            return _canonical(data) == _canonical(own)
        return _real(data) == _real(own)

    def _answers(self, split: Split, tally: Tally) -> Iterator[tuple[list[int], Tensor]]:
        """Positions in the split and the answers to them, batch by batch."""
        loader = tolerant_loader(evaluation_loader(split, self.backbone.input, self._loading))
        started = time.perf_counter()
        for rows, positions in iterate_answers(self._network, tally.count(loader), self.objective):
            tally.seconds += time.perf_counter() - started
            yield positions, rows
            started = time.perf_counter()  # what the caller does meanwhile does not count
        tally.conclude()


def _first(split: Split) -> Any:
    """One of the samples; None where it is a picture that cannot be read."""
    try:
        return split.read(split.paths[0])
    except UserError:
        return None


def _canonical(data: str) -> str:
    """The name of a data set without what tells no two of them apart."""
    if not data.startswith(MOLECULENET):
        return data
    return data.casefold().replace("-", "").replace("_", "")


def _is_named(data: str) -> bool:
    return data in SOURCES or data.startswith(tuple(COLLECTIONS))


def _real(data: str) -> Path:
    return Path(data).expanduser().resolve()


def _located(data: str, split: Split) -> set[str]:
    """The files of a split, links resolved."""
    folder = _real(data) if os.path.isdir(_real(data)) else _real(data).parent
    return {os.path.realpath(folder / path) for path in split.paths}
