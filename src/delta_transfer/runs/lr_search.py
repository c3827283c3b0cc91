"""`--lr find`: the learning rate that a short trial suggests, found once and kept in the folder."""

import csv
import dataclasses
import io
import logging
from pathlib import Path

import torch

from delta_transfer.runs.fine_tune import begin, hold, in_its_mode, network_change
from delta_transfer.runs.plan import Tuning, identity, loss_of, optimization, plan_fit
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.training.lr_finder import choose_rate, try_rates
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.module_state import same_random_state
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

HIGHEST = 1.0  # rate of the trial


def settle(prepared: Prepared, tuning: Tuning, folder: Path) -> Tuning:
    """With a learning rate that is a number; all trainings of a run have the same.

    Args:
        prepared: the pictures, the network and its probe.
        tuning: options and method.
        folder: of the run, which keeps the trial in `lr.csv`.

    Raises:
        UserError: if the network does not suit the method.
    """
    if tuning.config.lr != "find" or not tuning.method.trains:
        return tuning
    path, own = folder / "lr.csv", identity(prepared)
    trial = _kept(path, own, noun=prepared.task.noun)
    if trial is None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        found = [(*row, own) for row in _try(prepared, tuning, folder)]
        writer.writerows([("lr", "loss", "identity"), *found])
        write_atomically(path, text.getvalue())
        trial = _kept(path, own, noun=prepared.task.noun)
        assert trial is not None
    lr = choose_rate(trial)
    logger.info(
        "lr       %g: a tenth of the rate up to which the loss stays low in a trial of %d steps "
        "(lr.csv)",
        lr,
        len(trial),
    )
    return _with_lr(tuning, lr)


def _kept(path: Path, own: str, *, noun: str) -> list[tuple[float, float]] | None:
    """The rates and losses of a trial of before, if it was of the same samples and weights."""
    if not path.is_file():
        return None
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    if {row.get("identity") for row in rows} != {own}:
        logger.warning("%s is of other %ss or pretrained weights: trying rates anew", path, noun)
        return None
    return [(float(row["lr"]), float(row["loss"])) for row in rows]


def _try(prepared: Prepared, tuning: Tuning, folder: Path) -> list[tuple[float, float]]:
    """The rates and losses of a trial with a network of its own."""
    tuning = in_its_mode(_with_lr(tuning.branches[0], HIGHEST))
    network, attention = begin(prepared, tuning)
    regularizer = hold(prepared, tuning, network, attention)
    seed = tuning.config.seed
    generator = torch.Generator().manual_seed(derive_seed(seed, "trial", "method"))
    with same_random_state(network), network_change(tuning, network, generator):
        torch.manual_seed(derive_seed(seed, "trial"))  # for dropout
        steps = optimization(prepared, tuning, network)
        return try_rates(
            network,
            regularizer,
            plan_fit(prepared, tuning, folder, 1),
            loss=loss_of(prepared, tuning),
            head=prepared.backbone.head,
            objective=prepared.task.objective,
            optimization=dataclasses.replace(
                steps, schedule="rising", warm_up=0.0, head_cycles=1, ema=None
            ),
        )


def _with_lr(tuning: Tuning, lr: float) -> Tuning:
    return dataclasses.replace(tuning, config=dataclasses.replace(tuning.config, lr=lr))
