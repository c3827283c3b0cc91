"""Accuracy of the methods on a TUDataset by ten-fold cross-validation, pretrained per fold.

    python benchmarks/folds.py --data-root data
    python benchmarks/folds.py --data tu/MUTAG --methods l2,delta --seeds 0,1

Seed s tests on fold s, with a network pretrained by `delta-transfer pretrain` on the other folds
without their labels. The published rows of PROTEINS (G-Tuning, AAAI 2024,
https://arxiv.org/abs/2312.13583) start from a network that was pretrained on other graphs.
Rerunning the same command resumes.
"""

import argparse
import logging
from pathlib import Path

from accuracy import add_options, make, pooled, published, write_table

from delta_transfer.config.commands import PretrainOptions, parse_seeds
from delta_transfer.config.train import TrainOptions
from delta_transfer.pretraining.pretrain import WEIGHTS, pretrain

METHODS = "probe,l2,lp_ft,l2sp,delta,delta_attention,gtot"
PUBLISHED = {
    "tu/PROTEINS": {
        "most frequent class": 59.6,
        "fine-tuning": 64.42,
        "l2sp": 65.95,
        "delta_attention": 63.96,
        "bss": 65.58,
        "stochnorm": 64.08,
        "gtot": 62.89,
        "G-Tuning": 72.05,
    },
}


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folds = []
    for seed in parse_seeds(options.seeds):
        folder = options.out / f"fold{seed}"
        config = TrainOptions(
            data=options.data,
            data_root=options.data_root,
            model=options.model,
            weights=str(pretrained(options, folder / "pretrained", seed)),
            epochs=options.epochs,
            lr=options.lr,
            device=options.device,
        ).resolve()
        comparison, failed = make(options, config, folder / "runs", seeds=[seed])
        for text in failed:
            logging.warning("%s", text)
        folds.append(comparison)
    print("\n".join(write_table(options.data, pooled(folds))))
    if options.data in PUBLISHED:
        of = "another network, pretrained on other graphs"
        print(published(PUBLISHED[options.data], of))


def pretrained(options: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The weights of one fold, which are made where there are none."""
    if not (folder / WEIGHTS).is_file():
        pretrain(
            PretrainOptions(
                data=options.data,
                data_root=options.data_root,
                model=options.model,
                objective=options.objective,
                epochs=options.pretrain_epochs,
                batch_size=64,
                seed=seed,
                device=options.device,
                out=str(folder),
                overwrite=folder.exists(),
            )
        )
    return folder / WEIGHTS


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="tu/PROTEINS")
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--model", default="pyg/GIN")
    parser.add_argument("--objective", default="attribute-masking")
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    add_options(parser, methods=METHODS, seeds="0,1,2,3,4,5,6,7,8,9", out="runs/folds")
    parser.add_argument("--lr", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
