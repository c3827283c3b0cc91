"""Which epoch is kept, by one validation split or by folds, and the refit on all pictures."""

import csv
import dataclasses
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import GroupKFold, StratifiedKFold
from torch import Tensor

from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Split, Task, pool
from delta_transfer.metrics.run_result import StrengthSearch
from delta_transfer.runs.fine_tune import Tuned, fine_tune
from delta_transfer.runs.plan import Tuning
from delta_transfer.runs.preparation.prepared import Prepared, regroup
from delta_transfer.training.inference import predict_answers
from delta_transfer.training.loaders import plain_loader
from delta_transfer.utils.distributed import in_shares, is_main
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

SMALL = 300
"""Below so many training and validation pictures, the model learns from both in the end."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selected:
    """The final network of a run, and how good it was on pictures that it had not seen.

    Args:
        prepared: what it learnt from, and the probe on the same pictures.
        tuned: the network.
        epoch: how long it was trained, chosen on the pictures held out.
        held_out: the validation split; with folds, all pictures, each held out once.
        answers: to the held-out pictures `[N, K]`, by networks that had not seen them.
        probe: likewise of the linear probe.
        refitted: whether it was trained again on all pictures.
        trained: each training with pictures held out: what it learnt from, and what came of it.
        search: how its strength was found; None where it was given.
    """

    prepared: Prepared
    tuned: Tuned
    epoch: int
    held_out: Split
    answers: Tensor
    probe: Tensor
    refitted: bool
    trained: tuple[tuple[Prepared, Tuned], ...]
    search: StrengthSearch | None = None


def refits(config: TrainConfig, task: Task) -> bool:
    """Whether the final network learns from training and validation pictures together."""
    if not task.val_drawn or config.refit == "never":
        return False
    if config.folds or config.refit == "always":
        return True
    # A number of pictures a class that was asked for is to be just that.
    asked = config.samples_per_class is not None or config.official
    return len(task.train) + len(task.val) < SMALL and not asked


def hold_out(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    """Fine-tunes with pictures held out, and chooses the epoch on them.

    Args:
        prepared: the pictures, the network and its probe.
        tuning: options and method.
        folder: of the run. The folds are left in `folds/`.
    """
    if tuning.config.folds:
        return _cross_validate(prepared, tuning, folder)
    return _validate(prepared, tuning, folder)


def join(prepared: Prepared) -> Prepared:
    """The same with all pictures to learn from, those of the validation split too."""
    train = len(prepared.task.train)
    count = train + len(prepared.task.val)
    return regroup(prepared, train=range(count), val=range(train, count))


def refit(joined: Prepared, tuning: Tuning, folder: Path, *, epoch: int) -> Tuned:
    """Fine-tunes on all pictures, for as long as was chosen.

    Args:
        joined: from `join`.
        tuning: options and method.
        folder: of the run; what the refit leaves goes to `refit/`.
        epoch: chosen by `hold_out`.
    """
    if tuning.method.trains:
        how = f"{epoch} epochs" if epoch else "its start alone"
        count, noun = len(joined.task.train), joined.task.noun
        logger.info("refit    on all %d training and validation %ss, %s", count, noun, how)
    tuned = fine_tune(joined, tuning, folder / "refit", stop_after=epoch)
    attention = folder / "refit" / "attention.safetensors"
    if is_main() and attention.is_file():
        attention.replace(folder / attention.name)
    return tuned


def _validate(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    tuned = fine_tune(prepared, tuning, folder)
    val, config, objective = prepared.task.val, tuning.config, prepared.task.objective

    def ask(positions: Sequence[int]) -> tuple[Tensor]:
        loader = plain_loader(val.subset(positions), prepared.backbone.input, config)
        return (predict_answers(tuned.network, loader, objective),)

    (answers,) = in_shares(len(val), config.batch_size, ask)
    probe = prepared.probe_answers["val"]
    assert probe is not None
    return Selected(
        prepared=prepared,
        tuned=tuned,
        epoch=tuned.fitted.epoch,
        held_out=val,
        answers=answers,
        probe=probe,
        refitted=False,
        trained=((prepared, tuned),),
    )


def _cross_validate(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    """Every picture is held out once; the epoch is that with the lowest loss over all of them."""
    probes, logits, trained = [], [], []
    objective = prepared.task.objective
    folds = _folds(prepared.task, tuning.config.folds, seed=tuning.config.seed)
    for number, (train, val) in enumerate(folds, start=1):
        own = folder / "folds" / str(number)
        fold = regroup(prepared, train=train, val=val)
        if tuning.method.trains:
            logger.info("fold     %d of %d", number, len(folds))
        tuned = fine_tune(fold, tuning, own)
        probe = fold.probe_answers["val"]
        assert probe is not None
        probes.append(probe)
        tuned.network.cpu()  # there may be many
        trained.append((fold, tuned))
        validations = tuned.fitted.validations
        logits.append([found for found, _ in validations] or [objective.logits(probe)])
    order = [index for _, val in folds for index in val]
    held_out = pool(prepared.task).subset(order)
    targets = held_out.targets
    epochs = [torch.cat(parts) for parts in zip(*logits, strict=True)]
    losses = [float(objective.held_out_losses(found, targets).mean()) for found in epochs]
    last = tuning.config.official
    epoch = len(epochs) - 1 if last else int(np.nanargmin(losses))
    if tuning.method.trains and is_main():
        for name, keys in (("metrics.csv", ["epoch"]), ("drift.csv", ["epoch", "tap"])):
            files = sorted((folder / "folds").glob(f"*/{name}"))
            write_atomically(folder / name, _average(files, keys))
    return Selected(
        prepared=prepared,
        tuned=tuned,
        epoch=epoch,
        held_out=held_out,
        answers=objective.answers(epochs[epoch]),
        probe=torch.cat(probes),
        refitted=False,
        trained=tuple(trained),
    )


def _folds(task: Task, folds: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """Positions to train on and to hold out, stratified by class if there are classes.

    What was kept together as the validation split was drawn is held out together.
    """
    if task.group is not None:
        groups = [task.group(path) for path in pool(task).paths]
        grouped = GroupKFold(folds).split(groups, groups=groups)
        return [(train.tolist(), val.tolist()) for train, val in grouped]
    labels = np.array([*task.train.class_indices, *task.val.class_indices])
    draw = derive_seed(seed, "folds") % 2**32  # scikit-learn takes no larger one
    splitter = StratifiedKFold(folds, shuffle=True, random_state=draw)
    with warnings.catch_warnings():
        # A class with fewer pictures than folds is held out in as many folds as it has pictures.
        warnings.filterwarnings("ignore", "The least populated class")
        found = list(splitter.split(labels, labels))
    return [(train.tolist(), val.tolist()) for train, val in found]


def _average(files: Sequence[Path], keys: Sequence[str]) -> str:
    """The mean of CSV files, row by row; rows belong together by the values of their keys."""
    rows: dict[tuple[tuple[str, ...], tuple[str, ...]], list[dict[str, str]]] = {}
    columns: dict[str, None] = {}
    for file in files:
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                columns |= dict.fromkeys(row)
                given = tuple(name for name, text in row.items() if text)
                rows.setdefault((tuple(row[key] for key in keys), given), []).append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for (values, given), group in rows.items():
        means = {
            name: _mean([float(row[name]) for row in group]) for name in given if name not in keys
        }
        writer.writerow({**means, **dict(zip(keys, values, strict=True))})
    return text.getvalue()


def _mean(values: Sequence[float]) -> str:
    """Of those that are numbers, as a fold without both answers has no ROC-AUC; "" of none."""
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.8g}" if known else ""
