"""Throughput of training with cached images, compared with decoding them: images a second.

Measures `train` from its second epoch on, whole epochs; and the images alone, without a network.
The two alternate, results are medians over the repetitions. The metrics of training must be the
same to the last digit, or the benchmark fails.

python benchmarks/data.py data/images/dtd10
python benchmarks/data.py data/images/dtd10 --sizes 64 --repetitions 5 --method delta
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from pathlib import Path

from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.run import train
from delta_transfer.training.module import FineTuneModule

WAYS = {
    "decoded, 2 processes": {"image_cache_gb": 0.0, "num_workers": 2},
    "cached": {},
}
PIXELS = 400_000  # of the training images of all classes together, at least 32 images


class Clock:
    """When the epochs of a fit began and the last one ended."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.end = 0.0
        FineTuneModule.on_train_epoch_start = self._starts  # type: ignore[method-assign]
        self._ends = FineTuneModule.on_train_epoch_end

        def ended(module: FineTuneModule) -> None:
            self._ends(module)
            self.end = time.perf_counter()

        FineTuneModule.on_train_epoch_end = ended  # type: ignore[method-assign]

    def _starts(self) -> None:
        self.starts.append(time.perf_counter())

    def seconds(self) -> float:
        """Of an epoch, the first one left out."""
        return (self.end - self.starts[1]) / (len(self.starts) - 1)


def some(data: Path, folder: Path, size: int) -> int:
    """Copies so many images that the sizes take about the same time; says how many to train."""
    classes = sorted(path.name for path in (data / "train").iterdir() if path.is_dir())
    each = max(32, PIXELS // size**2) // len(classes) + 1
    for split, count in (("train", each), ("val", 2)):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for path in sorted((data / split / name).iterdir())[:count]:
                shutil.copy(path, folder / split / name)
    return len(list(folder.glob("train/*/*")))


def train_once(config: TrainConfig, clock: Clock, images: int) -> tuple[float, str]:
    """Images a second, and the metrics of each epoch."""
    clock.starts.clear()
    result = train(config)
    return images / clock.seconds(), (result.folder / "metrics.csv").read_text()


def load_once(config: TrainConfig) -> float:
    """Images a second of the training images alone, from the second epoch on."""
    prepared = prepare(config)
    loader = prepared.loaders.train_dataloader(prepared.task.train)
    for epoch in range(4):
        if epoch == 1:
            started = time.perf_counter()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for _ in loader:
            pass
    return 3 * len(prepared.task.train) / (time.perf_counter() - started)


def measure(
    data: Path, size: int, options: argparse.Namespace, clock: Clock
) -> dict[str, dict[str, float]]:
    """A row for each way: what it makes of training, and of images alone."""
    found: dict[str, dict[str, list[float]]] = {way: {"train": [], "load": []} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["DELTA_TRANSFER_CACHE"] = str(root / "cache")  # where nothing is yet
        images = some(data, root / "data", size)
        plain = TrainOptions(
            data=str(root / "data"),
            out=str(root / "run"),
            overwrite=True,
            method=options.method,
            strength=1.0 if options.method.startswith("delta") else "auto",
            image_size=size,
            epochs=options.epochs,
        ).resolve()
        configs = {way: dataclasses.replace(plain, **values) for way, values in WAYS.items()}
        curves = set()
        for _ in range(options.repetitions):
            for way, config in configs.items():
                speed, metrics = train_once(config, clock, images)
                found[way]["train"].append(speed)
                curves.add(metrics)
        for way, config in configs.items():
            found[way]["load"].append(load_once(config))
    assert len(curves) == 1, "the metrics of training differ"
    return {
        way: {name: statistics.median(speeds) for name, speeds in row.items()}
        for way, row in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder with train/CLASS and val/CLASS")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 224])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--method", default="l2")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    clock, rows = Clock(), []
    print(f"{'size':>4}  {'':22} {'train':>8} {'cached is':>9}   {'alone':>8} {'cached is':>9}")
    for size in options.sizes:
        found = measure(options.data, size, options, clock)
        for way, speeds in found.items():
            ratios = {name: found["cached"][name] / speed for name, speed in speeds.items()}
            print(
                f"{size:4}  {way:22} {speeds['train']:6.1f}/s {ratios['train']:8.2f}x   "
                f"{speeds['load']:6.0f}/s {ratios['load']:8.2f}x",
                flush=True,
            )
            rows.append({"size": size, "way": way, **speeds, "cached_is": ratios})
    print(f"{options.method}, medians of {options.repetitions}; losses are equal to the last digit")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
