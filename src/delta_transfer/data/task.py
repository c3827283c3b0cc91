"""What every source of data gives, a Task of splits, and the torch data set and sampler on it."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.metrics.task_types import Multiclass, TaskType
from delta_transfer.utils.seeds import derive_seed

Label = int | tuple[float, ...]
"""The class of a sample, or its values."""

SampleType = Literal["image", "molecule", "graph"]
"""What one of the samples is called."""


@dataclass(frozen=True)
class Split:
    """Labelled images, molecules or other graphs, not yet read.

    Attributes:
        paths: a readable identity of each sample: its path below the data folder, its SMILES, or a
            name such as `astronaut/r03c05`.
        labels: the class of each sample, as an index into `TaskData.classes`; or its values for
            each of them, NaN where they are not known.
        read: gives what an entry of `paths` names, an RGB image, or a graph as PyTorch Geometric
            has it (`Data`); it can be pickled.
        image_cache: images that need not be read again; None where none are kept.
        sample_type: what a sample is called in messages.
    """

    paths: tuple[str, ...]
    labels: tuple[Label, ...]
    read: Callable[[str], Any]
    image_cache: ImageCacheReader | None = field(default=None, compare=False, repr=False)
    sample_type: SampleType = "image"

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.labels):
            raise ValueError(
                f"paths and labels must be equally many, got {len(self.paths)} paths and "
                f"{len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def targets(self) -> torch.Tensor:
        """The labels: class indices `[N]`, or values `[N, K]` in float32."""
        return torch.tensor(self.labels)

    @property
    def class_indices(self) -> tuple[int, ...]:
        """The class of each sample; 0 of all whose labels are values, so that they are alike."""
        return tuple(label if isinstance(label, int) else 0 for label in self.labels)

    def target(self, index: int) -> int | torch.Tensor:
        """The label of a sample, as a DataLoader can put those of a batch together."""
        label = self.labels[index]
        return label if isinstance(label, int) else torch.tensor(label)

    def subset(self, indices: Iterable[int]) -> "Split":
        """The samples at these positions, in the order given."""
        chosen = [int(index) for index in indices]
        return replace(
            self,
            paths=tuple(self.paths[index] for index in chosen),
            labels=tuple(self.labels[index] for index in chosen),
        )


@dataclass(frozen=True)
class TaskData:
    """A task: what is to be told, its splits, and what a user should know about them.

    Attributes:
        name: a short name, for titles and folder names.
        classes: the class names; a label is an index into them, or has a value for each (then
            they name questions, or values).
        train: what is learnt from.
        val: what everything is chosen on.
        test: what nothing is ever chosen on; None where there is no such split.
        notes: sentences worth telling the user, such as which splits were drawn and how.
        metric: what the field reports of this data.
        val_drawn: whether the validation split was drawn from train; False where the data brings
            one.
        task_type: how a network's outputs, one for each class, are understood.
        kind: what the samples are, for which a network has to be made.
        group: tells by its path what a sample is to be held out with, as a validation split was
            drawn: the scaffold of a molecule. None where each is drawn on its own.
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
    kind: Literal["images", "graphs"] = "images"
    group: Callable[[str], str] | None = None

    @property
    def sample_type(self) -> SampleType:
        """What one of its samples is called."""
        return self.train.sample_type

    def describe(self, label: Label) -> str:
        """A label in words: the class, or the values that are known.

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
    """The transformed images of a split, for a DataLoader.

    What the split keeps of the transform is not made again.

    With a seed, the random numbers that are drawn depend on (seed, epoch, index) alone: not on
    the number of workers, on the order of the samples or on an interruption. The global random
    state is left as it was, that of the accelerators included.

    Args:
        split: the images.
        transform: makes a tensor `[C, H, W]` of an RGB image.
        crop: what then becomes of that tensor, which is not to be written to; None for nothing.
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
        """The image and its label: a class, or values `[K]`.

        Args:
            key: an index, or (epoch, index) as `EpochSampler` gives it; an index alone is epoch 0.
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
        path, kept = self.split.paths[index], self.split.image_cache
        made = None if kept is None else kept.find(path, self.transform)
        if made is None:
            made = self.transform(self.split.read(path))
        return made if self.crop is None else self.crop(made)


def pool_train_and_val(task: TaskData) -> Split:
    """The training images followed by the validation images that were drawn from them."""
    return dataclasses.replace(
        task.train,
        paths=(*task.train.paths, *task.val.paths),
        labels=(*task.train.labels, *task.val.labels),
    )
