"""Which epoch is kept, by one validation split or by folds, and the refit on all pictures."""

import copy
import csv
import dataclasses
import io
import logging
import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from delta_transfer.config import TrainConfig
from delta_transfer.data import Split, Task
from delta_transfer.data.seeds import derive_seed
from delta_transfer.files import write_atomically
from delta_transfer.functional import calibrated_cross_entropy, calibrated_losses
from delta_transfer.loaders import plain_loader
from delta_transfer.prepare import Prepared, pool, regroup
from delta_transfer.result import StrengthSearch
from delta_transfer.soup import SHARES, Shares, average, choose, percent
from delta_transfer.training import predict_probabilities
from delta_transfer.tuning import Tuned, Tuning, fine_tune

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
        probabilities: of the held-out pictures `[N, K]`, by networks that had not seen them.
        probe: likewise of the linear probe.
        refitted: whether it was trained again on all pictures.
        trained: each training with pictures held out: what it learnt from, and what came of it.
        search: how its strength was found; None where it was given.
    """

    prepared: Prepared
    tuned: Tuned
    epoch: int
    held_out: Split
    probabilities: Tensor
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


def select(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    """Fine-tunes, chooses the epoch, and fine-tunes again on all pictures where that is asked for.

    Args:
        prepared: the pictures, the network and its probe.
        tuning: options and method. With several branches, their average is chosen too.
        folder: of the run. The folds are left in `folds/`, the refit in `refit/`, and all that of a
            second branch in `weaker/`.
    """
    branches, folders = tuning.branches, (folder, folder / "weaker")
    found, seconds = [], []
    for branch, own in zip(branches, folders, strict=False):
        if len(branches) > 1:
            logger.info("strength %g", branch.strength)
        started = time.perf_counter()
        found.append(_held_out(prepared, branch, own))
        seconds.append(time.perf_counter() - started)
    chosen = found[0] if len(found) == 1 else _mix(found, branches, seconds)
    if not refits(tuning.config, prepared.task):
        return chosen
    count = len(prepared.task.train) + len(prepared.task.val)
    everything, own_val = range(count), range(len(prepared.task.train), count)
    joined = regroup(prepared, train=everything, val=own_val, seed=tuning.config.seed)
    tuned = []
    for branch, own, one in zip(branches, folders, found, strict=False):
        if branch.method.trains:
            how = f"{one.epoch} epochs" if one.epoch else "its start alone"
            logger.info("refit    on all %d training and validation pictures, %s", count, how)
        tuned.append(fine_tune(joined, branch, own / "refit", stop_after=one.epoch))
        _clear(own)
    final = tuned[0] if chosen.search is None else _averaged(tuned, chosen.search.shares)
    return dataclasses.replace(chosen, prepared=joined, tuned=final, refitted=True)


def _clear(folder: Path) -> None:
    """Leaves of folds and refit what is worth keeping."""
    for fold in (folder / "folds").glob("*"):  # until now they were all there was to keep
        shutil.rmtree(fold / "checkpoints")
    attention = folder / "refit" / "attention.safetensors"
    if attention.is_file():
        attention.replace(folder / attention.name)


def _held_out(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    if tuning.config.folds:
        return _cross_validate(prepared, tuning, folder)
    return _validate(prepared, tuning, folder)


def _mix(
    found: Sequence[Selected], branches: Sequence[Tuning], seconds: Sequence[float]
) -> Selected:
    """The average of the branches that is best, or not clearly worse, on pictures held out."""
    started = time.perf_counter()
    strong, weak = found
    labels = torch.tensor(strong.held_out.labels)
    probabilities: dict[Shares, list[Tensor]] = {shares: [] for shares in SHARES}
    for (prepared, one), (_, other) in zip(strong.trained, weak.trained, strict=True):
        loader = plain_loader(prepared.task.val, prepared.backbone.input, branches[0].config)
        for shares, parts in probabilities.items():
            network = _averaged([one, other], shares).network
            parts.append(predict_probabilities(network, loader)[0])
    pooled = {shares: torch.cat(parts) for shares, parts in probabilities.items()}
    losses = [calibrated_losses(found.clamp_min(1e-30).log(), labels) for found in pooled.values()]
    shares = choose(losses)
    search = StrengthSearch(
        strengths=(branches[0].strength or 0.0, branches[1].strength or 0.0),
        shares=shares,
        losses={
            percent(one): round(float(loss.mean()), 6)
            for one, loss in zip(SHARES, losses, strict=True)
        },
        epochs=(strong.epoch, weak.epoch),
        seconds=round(seconds[1] + time.perf_counter() - started, 1),
    )
    _tell(search)
    return dataclasses.replace(
        strong,
        tuned=_averaged([strong.tuned, weak.tuned], shares),
        epoch=max(one.epoch * (share > 0) for one, share in zip(found, shares[1:], strict=True)),
        probabilities=pooled[shares],
        search=search,
    )


def _tell(search: StrengthSearch) -> None:
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in search.losses.items())
    strong, weak = search.strengths
    logger.info(
        "strength auto: %s percent of the start, of strength %g and of strength %g; %s (validation "
        "loss: %s); the second training took %.0f seconds",
        percent(search.shares),
        strong,
        weak,
        "an equal average, as nothing was clearly better"
        if search.shares == SHARES[0]
        else "clearly better than an equal average",
        losses,
        search.seconds,
    )


def _averaged(tuned: Sequence[Tuned], shares: Shares) -> Tuned:
    """The network with so much of its start and of each training's outcome."""
    states = [tuned[0].start, *(one.network.state_dict() for one in tuned)]
    network = copy.deepcopy(tuned[0].network)
    network.load_state_dict(average(states, shares))
    return dataclasses.replace(tuned[0], network=network)


def _validate(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    tuned = fine_tune(prepared, tuning, folder)
    loader = plain_loader(prepared.task.val, prepared.backbone.input, tuning.config)
    probabilities, _ = predict_probabilities(tuned.network, loader)
    probe = prepared.probe_probabilities["val"]
    assert probe is not None
    return Selected(
        prepared=prepared,
        tuned=tuned,
        epoch=tuned.fitted.epoch,
        held_out=prepared.task.val,
        probabilities=probabilities,
        probe=probe,
        refitted=False,
        trained=((prepared, tuned),),
    )


def _cross_validate(prepared: Prepared, tuning: Tuning, folder: Path) -> Selected:
    """Every picture is held out once; the epoch is that with the lowest loss over all of them."""
    probes, logits, trained = [], [], []
    folds = _folds(prepared.task, tuning.config.folds, seed=tuning.config.seed)
    for number, (train, val) in enumerate(folds, start=1):
        own = folder / "folds" / str(number)
        fold = regroup(prepared, train=train, val=val, seed=tuning.config.seed)
        if tuning.method.trains:
            logger.info("fold     %d of %d", number, len(folds))
        tuned = fine_tune(fold, tuning, own)
        probe = fold.probe_probabilities["val"]
        assert probe is not None
        probes.append(probe)
        trained.append((fold, tuned))
        validations = tuned.fitted.validations
        logits.append([found for found, _ in validations] or [probe.clamp_min(1e-30).log()])
    order = [index for _, val in folds for index in val]
    held_out = pool(prepared.task).subset(order)
    labels = torch.tensor(held_out.labels)
    epochs = [torch.cat(parts) for parts in zip(*logits, strict=True)]
    losses = [float(calibrated_cross_entropy(found, labels)) for found in epochs]
    last = tuning.config.official
    epoch = len(epochs) - 1 if last else int(np.nanargmin(losses))
    if tuning.method.trains:
        for name, keys in (("metrics.csv", ["epoch"]), ("drift.csv", ["epoch", "tap"])):
            files = sorted((folder / "folds").glob(f"*/{name}"))
            write_atomically(folder / name, _average(files, keys))
    return Selected(
        prepared=prepared,
        tuned=tuned,
        epoch=epoch,
        held_out=held_out,
        probabilities=epochs[epoch].softmax(dim=1),
        probe=torch.cat(probes),
        refitted=False,
        trained=tuple(trained),
    )


def _folds(task: Task, folds: int, *, seed: int) -> list[tuple[list[int], list[int]]]:
    """Positions to train on and to hold out, stratified by class."""
    labels = np.array([*task.train.labels, *task.val.labels])
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
            name: f"{np.mean([float(row[name]) for row in group]):.8g}"
            for name in given
            if name not in keys
        }
        writer.writerow({**means, **dict(zip(keys, values, strict=True))})
    return text.getvalue()
