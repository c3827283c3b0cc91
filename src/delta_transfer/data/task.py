"""A dataset as every source returns it (splits, classes, notes), and its torch Dataset."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, TaskType
from delta_transfer.utils.seeds import derive_seed

Label = int | tuple[float, ...]
"""The class index of a sample, or a value for each target."""

SampleType = Literal["image", "molecule", "graph"]
"""The word for one sample, for messages."""


@dataclass(frozen=True)
class Split:
    """Labelled images, molecules or other graphs, read on demand.

    Attributes:
        paths: a readable name of each sample: its path below the data folder, its SMILES, or a
            name such as `astronaut/r03c05`.
        labels: the class of each sample, as an index into `TaskData.classes`; or a value for each
            of them, NaN where it is unknown.
        read: returns the sample of an entry of `paths`, an RGB image or a `Data` of PyTorch
            Geometric; picklable.
        image_cache: resized images that need not be decoded again; None without a cache.
        sample_type: the word for one sample, for messages.
    """

    paths: tuple[str, ...]
    labels: tuple[Label, ...]
    read: Callable[[str], Any]
    image_cache: ImageCacheReader | None = field(default=None, compare=False, repr=False)
    sample_type: SampleType = "image"

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(
                f"paths and labels differ in length: {len(self.paths)} and {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> torch.Tensor:
        """The labels: class indices `[N]`, or values `[N, K]` in float32."""
        return torch.tensor(self.labels)

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The class of each sample; 0 for all where labels are values."""
        return tuple(label if isinstance(label, int) else 0 for label in self.labels)

    def target(self, index: int) -> int | torch.Tensor:
        """The label of a sample in a form that a DataLoader can collate."""
        label = self.labels[index]
        return label if isinstance(label, int) else torch.tensor(label)

    def subset(self, indices: Iterable[int]) -> "Split":
        """Return the samples at these positions, in this order."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            paths=tuple(self.paths[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
        )


class LabelledSplit(NamedTuple):
    """Samples to evaluate a network on.

    Attributes:
        classes: as in `TaskData`.
        split: the samples.
        is_test: whether they are a test split, not all samples of a dataset.
    """

    classes: tuple[str, ...]
    split: Split
    is_test: bool


@dataclass(frozen=True)
class TaskData:
    """A dataset: its splits, its classes or targets, and notes for the user.

    Attributes:
        name: a short name, for titles and folder names.
        classes: the class names; a label is an index into them, or has a value for each (then
            they are the names of the targets).
        train: the samples to train on.
        val: the samples that everything is selected on.
        test: never used for selection; None without a test split.
        notes: sentences for the user, such as which splits were drawn and how.
        metric: the metric that the field reports for this dataset.
        val_drawn: whether the validation split was drawn from train.
        task_type: the meaning of the network's outputs, one for each class.
        group: returns the group of a sample by its path (the scaffold of a molecule), where
            validation samples are drawn by groups; None where they are drawn one by one.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...] = ()
    metric: MetricName = "accuracy"
    val_drawn: bool = False
    task_type: TaskType = field(default_factory=Multiclass)
    group: Callable[[str], str] | None = None

    @property
    def sample_type(self) -> SampleType:
        """The word for one of its samples."""
        return self.train.sample_type

    @property
    def kind(self) -> Literal["images", "graphs"]:
        """Images or graphs, which decides about the network."""
        return "images" if self.sample_type == "image" else "graphs"

    def describe(self, label: Label) -> str:
        """Return a label in words: the class, or the known values.

        Example:
            >>> split = Split((), (), Image.open)
            >>> names = ("heavy", "toxic")
            >>> task = TaskData(name="", classes=names, train=split, val=split, test=None)
            >>> task.describe(1), task.describe((3.25, float("nan")))
            ('toxic', 'heavy 3.25')
        """
        if isinstance(label, int):
            return self.classes[label]
        named = zip(self.classes, label, strict=True)
        return ", ".join(f"{name} {value:.6g}" for name, value in named if value == value)


class ImageDataset(Dataset[tuple[torch.Tensor, int | torch.Tensor]]):
    """The transformed images of a split.

    The result of `transform` comes from the split's image cache where it has one.

    With a seed, random numbers depend on (seed, epoch, index) alone: not on the number of
    workers, the order of the samples or an interruption. The global random state is restored,
    also that of accelerators.

    Args:
        split: the images.
        transform: turns an RGB image into a tensor `[C, H, W]`.
        crop: applied to that tensor, which must not be written to; None for nothing.
        seed: the user's seed for random augmentation; None for no randomness.

    Example:
        >>> split = Split(("a",), (1,), lambda path: Image.new("RGB", (2, 2)))
        >>> image, label = ImageDataset(split, lambda image: torch.rand(3, 2, 2), seed=0)[0, 0]
        >>> label
        1
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Image.Image], torch.Tensor],
        crop: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, int | torch.Tensor]:
        """Return the image and its label: a class, or values `[K]`.

        Args:
            key: an index, or (epoch, index) as from `EpochSampler`; an index alone is epoch 0.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        label = self.split.target(index)
        if self.seed is None:
            return self._make(index), label
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed: that would reseed every accelerator as well.
            seed = derive_seed(self.seed, "augmentation", epoch, index)
            torch.default_generator.manual_seed(seed)
            return self._make(index), label

    def _make(self, index: int) -> torch.Tensor:
        path, cache = self.split.paths[index], self.split.image_cache
        pixels = None if cache is None else cache.find(path, self.transform)
        if pixels is None:
            pixels = self.transform(self.split.read(path))
        return pixels if self.crop is None else self.crop(pixels)


def pool_train_and_val(task: TaskData) -> Split:
    """Return the training samples followed by the validation samples drawn from them."""
    return replace(
        task.train,
        paths=(*task.train.paths, *task.val.paths),
        labels=(*task.train.labels, *task.val.labels),
    )
