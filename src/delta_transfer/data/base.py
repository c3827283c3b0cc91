"""What every source of data gives, a Task of splits, and the torch data set and sampler on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from delta_transfer.data.balance import balanced_draws
from delta_transfer.data.kept import KeptPictures
from delta_transfer.metrics.metrics import Metric
from delta_transfer.metrics.objectives import Classes, Objective
from delta_transfer.utils.seeds import derive_seed

Label = int | tuple[float, ...]
"""The class of a sample, or its values."""

Noun = Literal["picture", "molecule", "graph"]
"""What one of the samples is called."""

_AGAIN = 2**20  # epochs that a sample is ahead each time that it is drawn again in one


@dataclass(frozen=True)
class Split:
    """Labelled pictures, molecules or other graphs, not yet read.

    Attributes:
        paths: a readable identity of each sample: its path below the data folder, its SMILES, or a
            name such as `astronaut/r03c05`.
        labels: the class of each sample, as an index into `Task.classes`; or its values for each
            of them, NaN where they are not known.
        read: gives what an entry of `paths` names, an RGB picture, or a graph as PyTorch Geometric
            has it (`Data`); it can be pickled.
        kept: pictures that need not be read again; None where none are kept.
        noun: what a sample is called in messages.
    """

    paths: tuple[str, ...]
    labels: tuple[Label, ...]
    read: Callable[[str], Any]
    kept: KeptPictures | None = field(default=None, compare=False, repr=False)
    noun: Noun = "picture"

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
class Task:
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
        objective: how a network's outputs, one for each class, are understood.
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
    metric: Metric = "accuracy"
    val_drawn: bool = False
    objective: Objective = field(default_factory=Classes)
    kind: Literal["pictures", "graphs"] = "pictures"
    group: Callable[[str], str] | None = None

    @property
    def noun(self) -> Noun:
        """What one of its samples is called."""
        return self.train.noun

    def describe(self, label: Label) -> str:
        """A label in words: the class, or the values that are known.

        Example:
            >>> split = Split((), (), Image.open)
            >>> task = Task(name="", classes=("heavy", "toxic"), train=split, val=split, test=None)
            >>> task.describe(1), task.describe((3.25, float("nan")))
            ('toxic', 'heavy 3.25')
        """
        if isinstance(label, int):
            return self.classes[label]
        named = zip(self.classes, label, strict=True)
        return ", ".join(f"{name} {value:.6g}" for name, value in named if value == value)


class PictureDataset(Dataset[tuple[torch.Tensor, int | torch.Tensor]]):
    """The transformed pictures of a split, for a DataLoader.

    What the split keeps of the transform is not made again.

    With a seed, the random numbers that are drawn depend on (seed, epoch, index) alone: not on
    the number of workers, on the order of the samples or on an interruption. The global random
    state is left as it was, that of the accelerators included.

    Args:
        split: the pictures.
        transform: makes a tensor `[C, H, W]` of an RGB picture.
        cut: what then becomes of that tensor, which is not to be written to; None for nothing.
        seed: the user's seed for random augmentation; None for no randomness.

    Example:
        >>> split = Split(("a",), (1,), lambda path: Image.new("RGB", (2, 2)))
        >>> picture, label = PictureDataset(split, lambda image: torch.rand(3, 2, 2), seed=0)[0, 0]
        >>> label
        1
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Image.Image], torch.Tensor],
        cut: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        self.split = split
        self.transform = transform
        self.cut = cut
        self.seed = seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, int | torch.Tensor]:
        """The picture and its label: a class, or values `[K]`.

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
        path, kept = self.split.paths[index], self.split.kept
        made = None if kept is None else kept.find(path, self.transform)
        if made is None:
            made = self.transform(self.split.read(path))
        return made if self.cut is None else self.cut(made)


class EpochSampler(Sampler[tuple[int, int]]):
    """(epoch, index) pairs in an order that is a pure function of (seed, epoch).

    Args:
        length: the number of samples.
        seed: the user's seed.
        labels: of the samples, to draw each class equally often; None to draw each sample once.
            One that is drawn again is augmented otherwise: it comes with a later epoch.

    Example:
        >>> sampler = EpochSampler(3, seed=0)
        >>> sampler.set_epoch(7)
        >>> sorted(sampler)
        [(7, 0), (7, 1), (7, 2)]
    """

    def __init__(self, length: int, *, seed: int, labels: Sequence[int] | None = None) -> None:
        self.length = length
        self.seed = seed
        self.labels = labels
        self.epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; Lightning calls this by itself."""
        self.epoch = epoch

    def go_on(self, epoch: int, *, done: int) -> None:
        """Choose an epoch of whose samples, in the next iteration alone, the first are left out."""
        self.epoch = epoch
        self._skipped = done

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first = self.epoch, self._skipped
        self._skipped = 0
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        if self.labels is None:
            order = torch.randperm(self.length, generator=generator).tolist()
            return iter([(epoch, index) for index in order[first:]])
        draws = zip(*balanced_draws(self.labels, generator=generator), strict=True)
        return iter([(epoch + _AGAIN * times, index) for index, times in draws][first:])


class ShareSampler(Sampler[tuple[int, int]]):
    """A process's share of each batch that an order of samples comes to.

    Where a batch, the last one, has no sample for this process, it is given the first of them, so
    that all processes have equally many batches; `sizes` tells that it is none of its own.

    Args:
        order: of all samples.
        batch_size: of all processes together; a multiple of them.
        rank: which process this is, from 0.
        processes: how many there are.

    Example:
        >>> shares = [ShareSampler(EpochSampler(5, seed=0), batch_size=4, rank=rank, processes=2)
        ...           for rank in range(2)]
        >>> [[index for _, index in share] for share in shares], shares[1].sizes(1)
        ([[4, 2, 3], [0, 1, 3]], (0, 1))
    """

    def __init__(self, order: EpochSampler, *, batch_size: int, rank: int, processes: int) -> None:
        if batch_size % processes:
            raise ValueError(f"{batch_size} samples cannot be shared by {processes} processes")
        self._order = order
        self._batch_size = batch_size
        self._rank = rank
        self._processes = processes
        self._skipped = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration is of; Lightning calls this by itself."""
        self._order.set_epoch(epoch)

    def go_on(self, epoch: int, *, done: int) -> None:
        """Choose an epoch whose first own samples are left out in the next iteration alone."""
        self._order.set_epoch(epoch)
        self._skipped = done

    def sizes(self, batch: int) -> tuple[int, int]:
        """How many samples of a batch, counted from 0, are this process's, and how many it has."""
        whole = min(self._batch_size, len(self._order) - batch * self._batch_size)
        return len(range(self._rank, whole, self._processes)), whole

    def __len__(self) -> int:
        batches = -(-len(self._order) // self._batch_size)
        return sum(max(1, self.sizes(batch)[0]) for batch in range(batches))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order, first = list(self._order), self._skipped
        self._skipped = 0
        own: list[tuple[int, int]] = []
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            own += batch[self._rank :: self._processes] or batch[:1]
        return iter(own[first:])
