"""Accuracy of the methods on a data set: a row a method, mean over seeds, paired differences.

    python benchmarks/accuracy.py ../shared/data/images/dtd10 --image-size 128
    python benchmarks/accuracy.py ../shared/data/images/cifar10_small --image-size 96 \
        --samples-per-class 20
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path

from delta_transfer.compare import compare, table
from delta_transfer.config import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--methods", default="probe,l2,lp_ft,l2sp,delta_no_attention,delta")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--samples-per-class", type=int)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = TrainConfig(
        data=options.data,
        image_size=options.image_size,
        epochs=options.epochs,
        samples_per_class=options.samples_per_class,
    )
    seeds = [int(seed) for seed in options.seeds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        results = compare(
            config, Path(folder) / "runs", methods=options.methods.split(","), seeds=seeds
        )
    print(f"\n{options.data}, {len(seeds)} seeds, test accuracy in percent")
    print(f"{'method':20} {'mean':>6} {'std':>5} {'vs l2':>14} {'seconds':>8}  each seed")
    for row in table(results):
        each = [100 * (r.test_accuracy or 0) for r in results if r.method == row.method]
        versus = row.difference
        paired = (
            "" if versus is None else f"{100 * versus.mean:+.1f} +- {100 * versus.deviation:.1f}"
        )
        print(
            f"{row.method:20} {100 * row.accuracy.mean:6.1f} {100 * row.accuracy.deviation:5.1f} "
            f"{paired:>14} {row.seconds:8.0f}  {' '.join(f'{value:.1f}' for value in each)}"
        )
    if options.json:
        rows = [json.loads(result.to_json()) for result in results]
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
