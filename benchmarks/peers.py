"""Accuracy of fastai and of timm's training recipe on the images, network and weights of our runs.

    pip install "delta-transfer[peers]"
    python benchmarks/peers.py --peers fastai,timm_sgd --sets trashnet@2x20 --image-size 64
    python benchmarks/peers.py --peers timm_sgd,timm_adamw --sets full,tiny --epochs 10,40

With the same `--out` as `accuracy.py`, the results are rows of its tables. Only the peer `fastai`
needs the extra, which brings some forty packages: an environment of its own is best.

- `fastai`: what its users get from `vision_learner(dls, NAME).fine_tune(epochs)`: its head, Adam,
  `base_lr=2e-3` with one epoch on the head alone before, `Resize` and `aug_transforms()`, batches
  of 64 (of all images if there are fewer), batch norm in train mode.
- `timm_sgd`, `timm_adamw`: the defaults of timm's train.py in small: random head, label smoothing
  0.1, `create_transform` (random resized crop, flip, colour jitter), cosine to zero after a warm-up
  from 1e-5, batch norm in train mode. SGD: Nesterov momentum 0.9, learning rate 0.1 for batches of
  256 in proportion to the batch, weight decay 2e-5. AdamW: 1e-3 for batches of 256 by the square
  root, weight decay 0.05. Batches are of 32 images as in our runs, and the warm-up is a fifth of
  the epochs, at most 5 (train.py: 128 images, 5 of 300 epochs).

Both see every training image of our runs: the validation images too if ours were drawn from the
training images, but with `samples_per_class` exactly that many. Nothing is selected: the last epoch
counts. Test images are the same; each tool resizes and crops them in its own way. Seconds include
data, network, training and test, but no imports, as those of our runs. Rerunning the same command
resumes.
"""

import argparse
import csv
import dataclasses
import importlib.metadata
import logging
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_sets import ImageSet, add_set_options, sizes_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from delta_transfer.backbones.base import Backbone, InputSpec
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.config.commands import parse_seeds
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.errors import DataError
from delta_transfer.utils.devices import find_device

PEERS_FILE = "peers.csv"

FASTAI_BATCH_SIZE = 64  # its default
TIMM_BATCH_SIZE = 32
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerResult:
    """The result of one training of another tool: a row of `peers.csv`.

    Args:
        peer: a name in `PEERS`.
        epochs: number of epochs; fastai's one on the head alone is not counted.
        set: name of the set of images.
        samples_per_class: as in `load_data`; None for all, and for tiny sets.
        seed: of the split, the subset and the training.
        model: the pretrained network.
        image_size: side of the images in pixels.
        test_accuracy: as a fraction.
        wall_time_s: of data, network, training and test.
        num_train_samples: number of images trained on.
        num_test_samples: number of images tested on.
        num_threads: CPU threads.
        versions: of the libraries.
    """

    peer: str
    epochs: int
    set: str
    samples_per_class: int | None
    seed: int
    model: str
    image_size: int
    test_accuracy: float
    wall_time_s: float
    num_train_samples: int
    num_test_samples: int
    num_threads: int
    versions: str

    @property
    def label(self) -> str:
        """The name of its row in a table."""
        return f"{self.peer}, {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}"

    @property
    def key(self) -> tuple[object, ...]:
        """The fields that identify a training."""
        return dataclasses.astuple(self)[:7]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One training for a peer to do.

    Args:
        classes: the class names.
        train: the images to train on.
        test: the images to test on.
        architecture: the network's name for `timm.create_model`.
        model_args: further arguments of `timm.create_model`.
        weights: the pretrained network's weights, under timm's names.
        spec: the preprocessing that the network expects.
        epochs: number of epochs.
        seed: of the training.
        device: to train on.
        num_workers: processes that load images.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    architecture: str
    model_args: dict[str, Any]
    weights: dict[str, Tensor]
    spec: InputSpec
    epochs: int
    seed: int
    device: torch.device
    num_workers: int

    def timm_args(self) -> dict[str, Any]:
        """Return the arguments of `timm.create_model` that load the weights."""
        # timm removes a head that does not fit from the dictionary.
        return {**self.model_args, "pretrained_cfg_overlay": {"state_dict": dict(self.weights)}}


def train_fastai(work: Work) -> float:
    """Fine-tune with fastai's defaults; return the test accuracy."""
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        ImageBlock,
        IndexSplitter,
        Resize,
        aug_transforms,
        vision_learner,
    )

    images = [*split_items(work.train), *split_items(work.test)]
    count = len(work.train)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(work.classes))),
        get_x=lambda index: images[index][0](),
        get_y=lambda index: work.classes[images[index][1]],
        splitter=IndexSplitter([]),
        item_tfms=Resize(work.spec.size),
        batch_tfms=aug_transforms(),
    )
    # It drops an incomplete batch, and would have none if there are fewer images.
    dls = block.dataloaders(
        list(range(count)),
        bs=min(FASTAI_BATCH_SIZE, count),
        num_workers=work.num_workers,
        device=work.device,
    )
    learner = vision_learner(dls, work.architecture, **work.timm_args())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(work.epochs)
        tested = dls.test_dl(list(range(count, len(images))), with_labels=True)
        predictions, labels = learner.get_preds(dl=tested)
    return accuracy(predictions, labels)


def split_items(split: Split) -> list[tuple[Callable[[], np.ndarray], int]]:
    """Return for each image a function that reads its pixels, and its class."""
    return [
        ((lambda path=path: np.asarray(split.read(path))), label)
        for path, label in zip(split.paths, split.class_indices, strict=True)
    ]


def train_timm(work: Work, *, optimizer: str) -> float:
    """Train by the defaults of timm's train.py in small; return the test accuracy.

    Args:
        work: the training.
        optimizer: "sgd" or "adamw".
    """
    import timm
    from timm.data import create_transform
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    network = timm.create_model(
        work.architecture, pretrained=True, num_classes=len(work.classes), **work.timm_args()
    ).to(work.device)
    size, pixels = work.spec.size, {"mean": work.spec.mean, "std": work.spec.std}
    augment = create_transform(size, is_training=True, interpolation="random", **pixels)
    resize = create_transform(
        size, interpolation=work.spec.interpolation, crop_pct=work.spec.crop_pct, **pixels
    )
    batch_size = min(TIMM_BATCH_SIZE, len(work.train))
    loader = DataLoader(
        Images(work.train, augment),
        batch_size,
        shuffle=True,
        drop_last=True,  # as timm's loader
        num_workers=work.num_workers,
        persistent_workers=work.num_workers > 0,
    )
    ratio = batch_size / 256
    if optimizer == "sgd":
        opt, lr, weight_decay = "sgd", 0.1 * ratio, 2e-5  # timm's sgd is Nesterov's
    else:
        opt, lr, weight_decay = "adamw", 1e-3 * ratio**0.5, 0.05
    stepper = create_optimizer_v2(network, opt=opt, lr=lr, weight_decay=weight_decay, momentum=0.9)
    schedule, _ = create_scheduler_v2(
        stepper,
        sched="cosine",
        num_epochs=work.epochs,
        warmup_epochs=min(5, work.epochs // 5),
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    criterion = LabelSmoothingCrossEntropy(0.1)
    network.train()
    updates = 0
    for _ in range(work.epochs):
        for inputs, labels in loader:
            schedule.step_update(updates)
            loss = criterion(network(inputs.to(work.device)), labels.to(work.device))
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            updates += 1
    tested = DataLoader(Images(work.test, resize), 128, num_workers=work.num_workers)
    return evaluate(network, tested, work.device)


class Images(Dataset[tuple[Tensor, int]]):
    """The transformed images of a split, and their classes."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.split.read(self.split.paths[index])
        return self.transform(image), self.split.class_indices[index]


def evaluate(network: nn.Module, loader: DataLoader[Any], device: torch.device) -> float:
    network.eval()
    with torch.inference_mode():
        found = [(network(inputs.to(device)).cpu(), labels) for inputs, labels in loader]
    return accuracy(torch.cat([out for out, _ in found]), torch.cat([own for _, own in found]))


def accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) == torch.as_tensor(labels)).double().mean())


PEERS: dict[str, Callable[[Work], float]] = {
    "fastai": train_fastai,
    "timm_sgd": lambda work: train_timm(work, optimizer="sgd"),
    "timm_adamw": lambda work: train_timm(work, optimizer="adamw"),
}


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("timm").setLevel(logging.WARNING)  # not what it loads, each time
    if "fastai" in options.peers:
        import_fastai()
    torch.set_num_threads(options.num_threads)
    file = options.out / PEERS_FILE
    results = []
    for image_set, size, seed in settings(options):
        results += measure(options, image_set, size=size, seed=seed, file=file)
    print("\n".join(write_table(results)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers", type=known_peers, default=",".join(PEERS), help=f"default {', '.join(PEERS)}"
    )
    add_set_options(parser)
    parser.add_argument("--model", default=TrainConfig.model, help="a network of timm or pypi/NAME")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--epochs", default="10", help="comma-separated, such as 10,40")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--num-workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    return parser.parse_args()


def known_peers(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}: choose from {', '.join(PEERS)}")
    return text.split(",")


def import_fastai() -> None:
    """Import fastai before the clock runs."""
    try:
        import fastai.vision.all  # noqa: F401
    except ModuleNotFoundError as error:
        sys.exit(f"peer fastai: {error}; pip install 'delta-transfer[peers]'")


def settings(options: argparse.Namespace) -> Iterator[tuple[ImageSet, int | None, int]]:
    """Yield set, training images per class and seed of each comparison."""
    for image_set in options.sets:
        sizes: list[int | None] = [None]
        if image_set.tiny is None:
            try:
                source = image_set.source(options.shared)
            except DataError as error:
                logger.warning("%s is left out: %s", image_set, error)
                continue
            sizes, _ = sizes_of(source, options.samples_per_class)
        for size in sizes:
            for seed in parse_seeds(options.seeds):
                yield image_set, size, seed


def measure(
    options: argparse.Namespace, image_set: ImageSet, *, size: int | None, seed: int, file: Path
) -> list[PeerResult]:
    """Return the results of all peers on one draw of a set, trained now or before."""
    finished = {result.key: result for result in read_peers(file)}
    results = []
    task = backbone = None
    for peer in options.peers:
        for epochs in map(int, options.epochs.split(",")):
            key = (peer, epochs, str(image_set), size, seed, options.model, options.image_size)
            if key not in finished:
                if task is None or backbone is None:
                    try:
                        data = image_set.data(options.shared, options.out, seed=seed)
                    except DataError as error:
                        logger.warning("%s is left out: %s", image_set, error)
                        return []
                    task = load_data(data, seed=seed, samples_per_class=size)
                    backbone = load_backbone(
                        options.model, num_outputs=len(task.classes), image_size=options.image_size
                    )
                work = make_work(options, task, backbone, size=size, seed=seed, epochs=epochs)
                finished[key] = result = train(options, work, key)
                append(result, file)
                logger.info(
                    "%s, seed %d, %s: %.1f%%, %.0f s",
                    image_set,
                    seed,
                    result.label,
                    100 * result.test_accuracy,
                    result.wall_time_s,
                )
            results.append(finished[key])
    return results


def make_work(
    options: argparse.Namespace,
    task: TaskData,
    backbone: Backbone,
    *,
    size: int | None,
    seed: int,
    epochs: int,
) -> Work:
    assert task.test is not None
    assert backbone.architecture is not None
    assert isinstance(backbone.input_spec, InputSpec)
    weights = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    for name in ("weight", "bias"):
        del weights[f"{backbone.head}.{name}"]
        if backbone.classifier is not None:
            weights[f"{backbone.head}.{name}"] = getattr(backbone.classifier, name).detach()
    return Work(
        classes=task.classes,
        train=pool_train_and_val(task) if task.val_drawn and size is None else task.train,
        test=task.test,
        architecture=backbone.architecture,
        model_args=dict(backbone.model_args),
        weights=weights,
        spec=backbone.input_spec,
        epochs=epochs,
        seed=seed,
        device=find_device(options.device),
        num_workers=options.num_workers,
    )


def train(options: argparse.Namespace, work: Work, key: tuple[Any, ...]) -> PeerResult:
    """Train one peer; `key` is that of its result."""
    for set_seed in (random.seed, torch.manual_seed):
        set_seed(work.seed)
    np.random.seed(work.seed % 2**32)
    started = time.perf_counter()
    test_accuracy = PEERS[key[0]](work)
    seconds = time.perf_counter() - started
    libraries = ("torch", "timm", *(["fastai"] if key[0] == "fastai" else []))
    names = [field.name for field in dataclasses.fields(PeerResult)]
    return PeerResult(
        **dict(zip(names, key, strict=False)),
        test_accuracy=test_accuracy,
        wall_time_s=round(seconds, 1),
        num_train_samples=len(work.train),
        num_test_samples=len(work.test),
        num_threads=torch.get_num_threads(),
        versions=" ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries),
    )


def append(result: PeerResult, file: Path) -> None:
    values = dataclasses.asdict(result)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.is_file()
    with file.open("a", newline="", encoding="utf-8") as rows:
        writer = csv.DictWriter(rows, list(values))
        if new:
            writer.writeheader()
        writer.writerow(values)


def read_peers(file: Path) -> list[PeerResult]:
    """Return the results in a file that `append` wrote; none if there is no file."""
    if not file.is_file():
        return []
    types = {field.name: field.type for field in dataclasses.fields(PeerResult)}
    with file.open(newline="", encoding="utf-8") as rows:
        return [
            PeerResult(**{name: _value(text, types[name]) for name, text in row.items()})
            for row in csv.DictReader(rows)
        ]


def _value(text: str, of_type: Any) -> Any:
    if of_type in (int, float, str):
        return of_type(text)
    return int(text) if text else None


def write_table(results: list[PeerResult]) -> Iterator[str]:
    """Write the mean of each peer on each set."""
    yield "| set | training images a class | tool | seeds | test accuracy | seconds |"
    yield "|---|---|---|--:|--:|--:|"
    rows: dict[tuple[str, int | None, str], list[PeerResult]] = {}
    for result in results:
        rows.setdefault((result.set, result.samples_per_class, result.label), []).append(result)
    for (name, size, label), own in rows.items():
        mean = statistics.fmean(result.test_accuracy for result in own)
        seconds = statistics.fmean(result.wall_time_s for result in own)
        count = "all" if size is None else size
        yield f"| {name} | {count} | {label} | {len(own)} | {100 * mean:.1f} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
