"""The estimated duration of a run and the actual one: a row per run.

python benchmarks/duration.py
python benchmarks/duration.py --data data/images/dtd10 --image-size 128 --epochs 4
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path

from delta_transfer.config.train import TrainOptions
from delta_transfer.runs.run import train


class Clock(logging.Handler):
    """When the estimate was said, and what it was."""

    def __init__(self) -> None:
        super().__init__()
        self.minutes = self.said = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"time +about ([\d.]+) minutes", record.getMessage())
        if found:
            self.minutes, self.said = float(found[1]), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="skimage/patches")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    plain = TrainOptions(
        data=options.data, image_size=options.image_size, epochs=options.epochs
    ).resolve()
    digits = dataclasses.replace(plain, data="sklearn/digits", samples_per_class=10, folds=0)
    runs = {
        "l2": dataclasses.replace(plain, method="l2"),
        "delta": plain,
        "delta, exact attention of 8": dataclasses.replace(
            plain, attention="exact", attention_samples=8, epochs=2
        ),
        "delta, digits": digits,
        "delta, digits, 3 folds": dataclasses.replace(
            digits, samples_per_class=None, folds=3, epochs=1, image_size=32
        ),
    }
    clock, rows = Clock(), []
    log = logging.getLogger("delta_transfer")
    log.addHandler(clock)
    log.setLevel(logging.INFO)
    for name, config in runs.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DELTA_TRANSFER_CACHE"] = folder  # where nothing is yet
            train(dataclasses.replace(config, out=str(Path(folder) / "run")))
        took = (time.perf_counter() - clock.said) / 60
        rows.append({"run": name, "estimated": clock.minutes, "took": took})
    print(f"{'run':30} {'estimated':>10} {'took':>6} {'ratio':>6}   minutes")
    for row in rows:
        ratio = row["took"] / row["estimated"] if row["estimated"] else float("inf")
        print(f"{row['run']:30} {row['estimated']:10.1f} {row['took']:6.1f} {ratio:6.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
