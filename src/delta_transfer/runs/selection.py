"""Selection of the epoch by a validation split or folds, and the refit on all samples."""

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
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.metrics.run_result import StrengthSearch
from delta_transfer.runs.fine_tune import FineTuneResult, fine_tune
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from delta_transfer.training.inference import predict_dataloader
from delta_transfer.utils.distributed import is_rank_zero, shard_and_gather
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

REFIT_THRESHOLD = 300
"""With fewer training and validation samples, the final model is refitted on both."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SelectionResult:
    """The final network of a run, and predictions for held-out samples.

    Args:
        setup: the data that it was trained on, and the probe on the same data.
        fine_tune_result: the network; with folds that of the last fold, until `refit` replaces it.
        epoch: the epoch, selected on held-out samples.
        held_out: the validation split; with folds all samples, each held out once.
        predictions: for the held-out samples `[N, K]`, by networks not trained on them.
        probe_predictions: for the same samples, by linear probes not trained on them.
        refitted: the network was trained again on all samples.
        validation_results: setup and result of each training with held-out samples.
        strength_search: the search for the strength; None if it was fixed.
    """

    setup: RunSetup
    fine_tune_result: FineTuneResult
    epoch: int
    held_out: Split
    predictions: Tensor
    probe_predictions: Tensor
    refitted: bool
    validation_results: tuple[tuple[RunSetup, FineTuneResult], ...]
    strength_search: StrengthSearch | None = None


def should_refit(config: TrainConfig, task: TaskData) -> bool:
    """Return True if the final network is trained on training and validation samples."""
    if not task.val_drawn or config.refit == "never":
        return False
    if config.folds or config.refit == "always":
        return True
    # A requested number of samples per class is to be exact.
    fixed = config.samples_per_class is not None or config.paper_protocol
    return len(task.train) + len(task.val) < REFIT_THRESHOLD and not fixed


def select_epoch(plan: FineTunePlan, folder: Path) -> SelectionResult:
    """Fine-tune with held-out samples, and select the epoch on them.

    Args:
        plan: data, network, options and method.
        folder: folder of the run; folds are in `folds/`.
    """
    if plan.config.folds:
        return _cross_validate(plan, folder)
    return _validate(plan, folder)


def merge_train_and_val(setup: RunSetup) -> RunSetup:
    """Return the setup with the validation samples added to the training samples."""
    train = len(setup.task.train)
    count = train + len(setup.task.val)
    return resplit(setup, train=range(count), val=range(train, count))


def refit(plan: FineTunePlan, folder: Path, *, epoch: int) -> FineTuneResult:
    """Fine-tune on all samples for the selected number of epochs.

    Args:
        plan: options and method, with the setup of `merge_train_and_val`.
        folder: folder of the run; files of the refit are in `refit/`.
        epoch: the selected epoch.
    """
    if plan.method.trains_network:
        how = f"{epoch} epochs" if epoch else "0 epochs: the initialization"
        task = plan.setup.task
        count, noun = len(task.train), task.sample_type
        logger.info("refit    on all %d training and validation %ss, %s", count, noun, how)
    result = fine_tune(plan, folder / "refit", stop_after=epoch)
    attention = folder / "refit" / "attention.safetensors"
    if is_rank_zero() and attention.is_file():
        attention.replace(folder / attention.name)
    return result


def _validate(plan: FineTunePlan, folder: Path) -> SelectionResult:
    setup, result = plan.setup, fine_tune(plan, folder)
    val, task_type = setup.task.val, setup.task.task_type

    def predict(positions: Sequence[int]) -> tuple[Tensor]:
        loader = plan.loaders.eval_dataloader(val.subset(positions))
        return (predict_dataloader(result.network, loader, task_type),)

    (predictions,) = shard_and_gather(len(val), plan.config.batch_size, predict)
    probe = setup.probe_predictions["val"]
    assert probe is not None
    return SelectionResult(
        setup=setup,
        fine_tune_result=result,
        epoch=result.fit_result.epoch,
        held_out=val,
        predictions=predictions,
        probe_predictions=probe,
        refitted=False,
        validation_results=((setup, result),),
    )


def _cross_validate(plan: FineTunePlan, folder: Path) -> SelectionResult:
    """Hold out each sample once; select the epoch with the lowest loss over all of them."""
    probes, logits, results = [], [], []
    setup = plan.setup
    task_type = setup.task.task_type
    folds = _folds(setup.task, plan.config.folds, seed=plan.config.seed)
    for number, (train, val) in enumerate(folds, start=1):
        fold = resplit(setup, train=train, val=val)
        if plan.method.trains_network:
            logger.info("fold     %d of %d", number, len(folds))
        fold_plan = dataclasses.replace(plan, setup=fold)
        result = fine_tune(fold_plan, folder / "folds" / str(number))
        probe = fold.probe_predictions["val"]
        assert probe is not None
        probes.append(probe)
        result.network.cpu()  # there may be many
        results.append((fold, result))
        outputs = result.fit_result.val_outputs
        logits.append([found for found, _ in outputs] or [task_type.logits(probe)])
    order = [index for _, val in folds for index in val]
    held_out = pool_train_and_val(setup.task).subset(order)
    targets = held_out.targets
    epochs = [torch.cat(parts) for parts in zip(*logits, strict=True)]
    losses = [float(task_type.held_out_losses(found, targets).mean()) for found in epochs]
    epoch = len(epochs) - 1 if plan.config.paper_protocol else _lowest(losses)
    if plan.method.trains_network and is_rank_zero():
        for name, keys in (("metrics.csv", ["epoch"]), ("drift.csv", ["epoch", "tap"])):
            files = sorted((folder / "folds").glob(f"*/{name}"))
            write_atomically(folder / name, _average(files, keys))
    return SelectionResult(
        setup=setup,
        fine_tune_result=result,
        epoch=epoch,
        held_out=held_out,
        predictions=task_type.predictions(epochs[epoch]),
        probe_predictions=torch.cat(probes),
        refitted=False,
        validation_results=tuple(results),
    )


def _lowest(losses: Sequence[float]) -> int:
    """Return the position of the lowest loss, the first if none of them is a number."""
    if np.isnan(losses).all():
        logger.warning("the validation loss is NaN in all epochs: keeping the initial weights")
        return 0
    return int(np.nanargmin(losses))


def _folds(task: TaskData, folds: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return positions to train on and to hold out, stratified by class if there are classes.

    Groups that the split kept together, such as scaffolds, are held out together.
    """
    draw = derive_seed(seed, "folds") % 2**32  # scikit-learn takes no larger one
    if task.group is not None:
        names = [task.group(path) for path in pool_train_and_val(task).paths]
        _, groups = np.unique(names, return_inverse=True)
        # scikit-learn fills folds by the size of groups, and orders those of equal size by number;
        # its own shuffle would not balance the sizes of folds.
        groups = np.random.default_rng(draw).permutation(groups.max() + 1)[groups]
        grouped = GroupKFold(folds).split(groups, groups=groups)
        return [(train.tolist(), val.tolist()) for train, val in grouped]
    labels = np.array([*task.train.class_indices, *task.val.class_indices])
    splitter = StratifiedKFold(folds, shuffle=True, random_state=draw)
    with warnings.catch_warnings():
        # A class with fewer samples than folds is held out in as many folds as it has samples.
        warnings.filterwarnings("ignore", "The least populated class")
        found = list(splitter.split(labels, labels))
    return [(train.tolist(), val.tolist()) for train, val in found]


def _average(files: Sequence[Path], keys: Sequence[str]) -> str:
    """Return the mean of CSV files over rows with the same values in the key columns."""
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
    """Return the mean without NaN, as of folds with one class and no ROC-AUC; "" if all are."""
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.8g}" if known else ""
