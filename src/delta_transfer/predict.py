"""A saved run put to use: predictions of pictures, accuracy on labelled ones."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from sklearn.metrics import accuracy_score, recall_score
from torch import Tensor

from delta_transfer.backbones import Backbone
from delta_transfer.backbones.saved import load_model
from delta_transfer.config import TrainConfig
from delta_transfer.data import SOURCES, Split, load_task
from delta_transfer.data.folder import load_labelled
from delta_transfer.data.images import IMAGE_SUFFIXES, read_image
from delta_transfer.data.scan import find_pictures
from delta_transfer.errors import UserError
from delta_transfer.prepare import find_device, place, plain_loader
from delta_transfer.training import predict_probabilities


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of one picture.

    Args:
        path: the picture.
        probabilities: class name -> probability, the most probable first.
    """

    path: str
    probabilities: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How good a network is on labelled pictures, in fractions.

    Args:
        pictures: how many.
        accuracy: of all pictures.
        mean_class_accuracy: the mean of the classes' own accuracies.
        seen: the pictures may have been trained on.
    """

    pictures: int
    accuracy: float
    mean_class_accuracy: float
    seen: bool


class Predictor:
    """The network of a finished run.

    Args:
        run: the folder of the run.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"mps"`.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if None.

    Raises:
        UserError: if there is no finished run.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        self.run = Path(run)
        if not self.run.is_dir():
            raise UserError(f"there is no run {run}: give the folder that train wrote")
        self.backbone: Backbone
        self.backbone, self.classes = load_model(self.run / "model")
        self.device = find_device(device)
        place(self.backbone.module, self.device)
        self._options = TrainConfig(data="", batch_size=batch_size, workers=workers)

    def predict(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Predictions for files and for all pictures in folders.

        Raises:
            UserError: if a path does not exist, a folder has no pictures, or a file is unreadable.
        """
        files = [file for path in paths for file in _files(Path(path))]
        if not files:
            return []
        split = Split(tuple(files), (0,) * len(files), _read)
        predictions = []
        for path, row in zip(files, self._probabilities(split), strict=True):
            order = row.argsort(descending=True, stable=True).tolist()
            predictions.append(Prediction(path, {self.classes[i]: row[i].item() for i in order}))
        return predictions

    def evaluate(self, data: str) -> Evaluation:
        """Accuracy on a test split; on all pictures of a folder that has none.

        Args:
            data: a folder as for training, or the named data set that the run was trained on.

        Raises:
            UserError: if it has classes that the network does not know.
        """
        config = TrainConfig.load(self.run / "config.yaml")
        classes, split, apart = self._labelled(data, config)
        strange = sorted(set(classes) - set(self.classes))
        if strange:
            raise UserError(
                f"{data} has classes that the run does not know: {', '.join(strange)}; "
                f"it knows {', '.join(self.classes)}"
            )
        labels = [self.classes.index(classes[label]) for label in split.labels]
        predicted = self._probabilities(split).argmax(dim=1).tolist()
        inside = Path(data).resolve().is_relative_to(Path(config.data).resolve())
        return Evaluation(
            pictures=len(split),
            accuracy=float(accuracy_score(labels, predicted)),
            mean_class_accuracy=_mean_class_accuracy(labels, predicted),
            seen=inside and not apart,
        )

    def _labelled(self, data: str, config: TrainConfig) -> tuple[Sequence[str], Split, bool]:
        """Class names, pictures, and whether they are a test split."""
        if data in SOURCES or Path(data).resolve() == Path(config.data).resolve():
            # The run's own data: the same test split, also where the seed drew it.
            task = load_task(
                data,
                seed=config.seed,
                val_fraction=config.val_fraction,
                test_split=config.test_split if data == config.data else "test",
            )
            if task.test is not None:
                return task.classes, task.test, True
        return load_labelled(Path(data), test_split=config.test_split)

    def _probabilities(self, split: Split) -> Tensor:
        loader = plain_loader(split, self.backbone.input, self._options)
        return predict_probabilities(self.backbone.module, loader)[0]


def _mean_class_accuracy(labels: Sequence[int], predicted: Sequence[int]) -> float:
    # Classes that occur only among the predictions have no accuracy of their own.
    present = sorted(set(labels))
    return float(recall_score(labels, predicted, labels=present, average="macro"))


def _read(path: str) -> Image.Image:
    return read_image(Path(path))


def _files(path: Path) -> list[str]:
    if path.is_dir():
        found = [str(path / name) for name in find_pictures(path, root=path)]
        if not found:
            raise UserError(
                f"no pictures in {path}: the files must end in {', '.join(sorted(IMAGE_SUFFIXES))}"
            )
        return found
    if not path.is_file():
        raise UserError(f"there is no file or folder {path}")
    return [str(path)]
