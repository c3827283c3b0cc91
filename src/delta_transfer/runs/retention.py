"""What fine-tuning keeps: agreement with the pretrained network, and accuracy on other images."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.data.images.corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages
from delta_transfer.data.images.loader import DeviceDataLoader, ignore_stops
from delta_transfer.data.task import ImageDataset, Split
from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.selection import SelectionResult
from delta_transfer.runs.source_classes import source_classes
from delta_transfer.utils.distributed import shard_and_gather
from delta_transfer.utils.files import to_csv, write_atomically
from delta_transfer.utils.module_state import device_of, eval_mode

MAX_IMAGES = 200
"""The number of images that each corruption, and agreement, is measured on at most."""

CORRUPTIONS_FILE = "corruptions.csv"  # in the folder of a run

UNCORRUPTED = ("none", 0)
"""The corruption and severity of the images as they are."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """Correct predictions for the same images.

    Args:
        num_images: number of images.
        num_correct: by the final network.
        num_probe_correct: by the linear probe.
    """

    num_images: int = 0
    num_correct: int = 0
    num_probe_correct: int = 0

    @property
    def accuracy(self) -> float | None:
        """Of the final network; None without images."""
        return self.num_correct / self.num_images if self.num_images else None

    @property
    def probe_accuracy(self) -> float | None:
        """Of the linear probe; None without images."""
        return self.num_probe_correct / self.num_images if self.num_images else None

    def __add__(self, other: "Count") -> "Count":
        """Return the sum of both."""
        return Count(
            num_images=self.num_images + other.num_images,
            num_correct=self.num_correct + other.num_correct,
            num_probe_correct=self.num_probe_correct + other.num_probe_correct,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """What a fine-tuned network has kept, as counts.

    Args:
        num_compared: number of images on which it is compared with the pretrained network.
        num_agreeing: number of those with the same top-1 class by the classifier of pretraining.
        corrupted: by corruption and severity, also of the same images as they are; empty for tasks
            without classes.
        shifted: on the images of `shifted`.
    """

    num_compared: int = 0
    num_agreeing: int = 0
    corrupted: Mapping[tuple[str, int], Count] = dataclasses.field(default_factory=dict)
    shifted: Count = Count()

    @property
    def total_corrupted(self) -> Count:
        """The sum over all corruptions and severities."""
        counts = (count for key, count in self.corrupted.items() if key != UNCORRUPTED)
        return functools.reduce(Count.__add__, counts, Count())

    def result_fields(self) -> dict[str, float | None]:
        """Return the fields of `RunResult`."""
        corrupted, compared = self.total_corrupted, self.num_compared
        return {
            "kept_agreement": self.num_agreeing / compared if compared else None,
            "corruption_accuracy": corrupted.accuracy,
            "linear_probe_corruption_accuracy": corrupted.probe_accuracy,
            "shifted_accuracy": self.shifted.accuracy,
            "linear_probe_shifted_accuracy": self.shifted.probe_accuracy,
        }

    def save(self, path: Path) -> None:
        """Write the accuracy by corruption and severity as a CSV file, if there is any."""
        if not self.corrupted:
            return
        header = ("corruption", "severity", "num_images", "accuracy", "linear_probe_accuracy")
        rows: list[Sequence[object]] = [header]
        for (corruption, severity), count in self.corrupted.items():
            numbers = [count.num_images, count.accuracy, count.probe_accuracy]
            rows.append([corruption, severity, *numbers])
        write_atomically(path, to_csv(rows))


def measure_run(selected: SelectionResult) -> Retention:
    """Measure a run's final network on the test split, and on the images of `shifted`.

    Without a test split it is measured on the held-out samples, unless it was trained on them too.
    """
    setup, network = selected.setup, selected.network
    split = setup.task.test
    if split is None and not selected.num_folds:
        split = selected.held_out
    found = Retention() if split is None else measure_retention(network, setup, split)
    return dataclasses.replace(found, shifted=measure_shifted(network, setup))


def measure_retention(network: nn.Module, setup: RunSetup, split: Split) -> Retention:
    """Compare a network with the pretrained one, and measure both on corrupted images.

    Agreement is the fraction of images for which the features of the fine-tuned and those of the
    pretrained network have the same top-1 class by the classifier of pretraining. The linear probe
    is the pretrained network with the probe's head. All processes must call it.

    Args:
        network: fine-tuned from the pretrained network of the setup; not changed.
        setup: the pretrained network, its probe and the data loaders.
        split: held-out samples, of which at most `MAX_IMAGES` are used, evenly spread.
    """
    if setup.task.kind != "images":
        return Retention()
    count = min(MAX_IMAGES, len(split))
    sample = split.subset(i * len(split) // count for i in range(count))
    copies = _choose_copies(count) if isinstance(setup.task.task_type, Multiclass) else [()] * count
    size = max(1, setup.loaders.config.micro_batch_size // (1 + len(copies[0])))

    def judge(positions: Sequence[int]) -> tuple[Tensor]:
        own = [copies[position] for position in positions]
        loader = _corrupted_dataloader(setup, sample.subset(positions), own, batch_size=size)
        return (_judge(network, setup, loader),)

    (found,) = shard_and_gather(count, size, judge)
    agreeing = found[:, 0, _AGREES].sum() if setup.backbone.classifier is not None else 0
    return Retention(
        num_compared=0 if setup.backbone.classifier is None else count,
        num_agreeing=int(agreeing),
        corrupted=_count_by_corruption(found, copies) if copies[0] else {},
    )


def measure_shifted(network: nn.Module, setup: RunSetup) -> Count:
    """Measure a network and the linear probe on all images of `shifted`, if there are any."""
    split = setup.shifted
    if split is None:
        return Count()

    def judge(positions: Sequence[int]) -> tuple[Tensor]:
        return (_judge(network, setup, setup.loaders.eval_dataloader(split.subset(positions))),)

    (found,) = shard_and_gather(len(split), setup.loaders.config.batch_size, judge)
    return _count(found[:, 0])


_CORRECT, _PROBE_CORRECT, _AGREES = range(3)  # columns of what is judged


def _choose_copies(count: int) -> list[tuple[tuple[str, int], ...]]:
    """Return the corruptions and severities of each image.

    Few images have all severities. Many have one of each corruption, in turn: more images tell more
    than more copies of the same image.
    """
    if count * len(SEVERITIES) <= MAX_IMAGES:
        return [tuple((name, s) for name in CORRUPTIONS for s in SEVERITIES)] * count
    return [
        tuple(
            (name, SEVERITIES[(index + number) % len(SEVERITIES)])
            for number, name in enumerate(CORRUPTIONS)
        )
        for index in range(count)
    ]


def _corrupted_dataloader(
    setup: RunSetup, split: Split, copies: Sequence[Sequence[tuple[str, int]]], *, batch_size: int
) -> DeviceDataLoader:
    """Return the images without augmentation with their copies, `[B, 1 + V, 3, S, S]`."""
    plain = setup.loaders.eval_dataloader(split)
    assert isinstance(plain.dataset, ImageDataset)
    return DeviceDataLoader(
        CorruptedImages(plain.dataset, copies, seed=setup.loaders.config.seed),
        normalise=plain.normalise,
        device=plain.device,
        batch_size=batch_size,
        num_workers=plain.num_workers,
        worker_init_fn=ignore_stops,
    )


def _judge(network: nn.Module, setup: RunSetup, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Judge predictions for images `[B, 3, S, S]`, or for several views of each.

    Returns:
        For each view whether the network is correct, whether the probe is, and whether both agree
        by the classifier of pretraining: `[N, V, 3]`, on the CPU.
    """
    source, names = setup.source, [setup.backbone.head]
    classifier = setup.backbone.classifier
    found = []
    with (
        eval_mode(network),
        eval_mode(source),
        torch.no_grad(),
        HeadInputs(network, names) as own,
        HeadInputs(source, names) as original,
    ):
        for images, labels in batches:
            views = images if images.ndim == 5 else images.unsqueeze(1)
            flat = views.flatten(0, 1)
            predicted = network(flat.to(device_of(network))).argmax(dim=1).cpu()
            source(flat.to(device_of(source)))
            (now,), (then,) = own.inputs().values(), original.inputs().values()
            probe = setup.probe(then.float()).argmax(dim=1).cpu()
            agrees = torch.zeros_like(probe, dtype=torch.bool)
            if classifier is not None:
                agrees = source_classes(classifier, now) == source_classes(classifier, then)
            # Labels of several targets are no class, and nothing is correct.
            targets = labels if labels.ndim == 1 else torch.full((len(labels),), -1)
            targets = targets.repeat_interleave(views.shape[1])
            judged = torch.stack([predicted == targets, probe == targets, agrees], dim=1)
            found.append(judged.view(*views.shape[:2], 3))
    return torch.cat(found)


def _count_by_corruption(
    found: Tensor, copies: Sequence[Sequence[tuple[str, int]]]
) -> dict[tuple[str, int], Count]:
    views = [[UNCORRUPTED, *own] for own in copies]
    order = [UNCORRUPTED, *((name, severity) for name in CORRUPTIONS for severity in SEVERITIES)]
    counts = {}
    for key in order:
        rows = [found[i, own.index(key)] for i, own in enumerate(views) if key in own]
        if rows:
            counts[key] = _count(torch.stack(rows))
    return counts


def _count(judged: Tensor) -> Count:
    """Count the correct predictions of `[N, 3]`."""
    total: list[Any] = judged.sum(dim=0).tolist()
    return Count(
        num_images=len(judged),
        num_correct=total[_CORRECT],
        num_probe_correct=total[_PROBE_CORRECT],
    )
