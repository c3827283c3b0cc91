"""ROC-AUC of the methods on BBBP and SIDER, beside the published row: a table for each.

    python benchmarks/molecules.py --weights graphsage_supervised_contextpred.pth
    python benchmarks/molecules.py --weights ... --methods l2,delta --seeds 0,1 --sets BBBP

The split of GTOT-Tuning (Zhang et al., IJCAI 2022, https://arxiv.org/abs/2203.10453, Table 2),
scaffold 80/10/10, with our recipe; theirs is a GIN with dropout, batch norm in train mode and up to
100 epochs that end 20 after the best one (`--epochs 100`, without early stopping). Rerunning the
same command resumes.
"""

import argparse
import logging
from pathlib import Path

from accuracy import add_options, average, make, published, write_table

from delta_transfer.config.commands import parse_seeds
from delta_transfer.config.train import TrainOptions

METHODS = "probe,l2,lp_ft,l2sp,delta,delta_attention,gtot"
# Zhang et al. 2022, Table 2: GIN 5 x 300, supervised_contextpred, mean of 10 seeds.
PUBLISHED = {
    "BBBP": {
        "fine-tuning": 68.7,
        "l2sp": 68.5,
        "delta": 68.6,
        "delta_attention": 68.4,
        "bss": 70.0,
        "stochnorm": 69.8,
        "gtot": 71.5,
    },
    "SIDER": {
        "fine-tuning": 62.7,
        "l2sp": 63.8,
        "delta": 63.0,
        "delta_attention": 62.9,
        "bss": 62.8,
        "stochnorm": 62.2,
    },
}


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    comparisons = {}
    for name in options.sets.split(","):
        logging.info("=== %s", name)
        config = TrainOptions(
            data=f"moleculenet/{name}",
            data_root=str(options.data_root),
            model=options.model,
            weights=None if options.weights is None else str(options.weights),
            epochs=options.epochs,
            lr=options.lr,
            batch_norm=options.batch_norm,
            device=options.device,
        ).resolve()
        seeds = parse_seeds(options.seeds)
        comparisons[name], failed = make(options, config, options.out / name, seeds=seeds)
        for text in failed:
            logging.warning("%s, %s", name, text)
    for name, comparison in comparisons.items():
        print("\n".join(write_table(name, comparison)))
        print(published(PUBLISHED[name], "another network"))
    if len(comparisons) > 1:
        print("\n".join(write_table("Mean", average([*comparisons.values()]))))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(PUBLISHED))
    parser.add_argument("--data-root", type=Path, default=Path("data/moleculenet"))
    parser.add_argument("--model", default="pretrain-gnns/graphsage")
    parser.add_argument(
        "--weights", type=Path, help="the released ones are downloaded if not given"
    )
    add_options(parser, methods=METHODS, seeds="0,1,2,3,4", out="runs/molecules")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch-norm", default="frozen")
    return parser.parse_args()


if __name__ == "__main__":
    main()
