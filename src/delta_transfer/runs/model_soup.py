"""The final network of a run: of one training, or made of the two of `--strength auto`."""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from delta_transfer.errors import UserError
from delta_transfer.metrics.run_result import StrengthSearch
from delta_transfer.runs.fine_tune import Tuned
from delta_transfer.runs.plan import Tuning
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.runs.selection import Selected, hold_out, join, refit, refits
from delta_transfer.training.inference import predict_answers
from delta_transfer.training.loaders import plain_loader
from delta_transfer.utils.devices import place

State = Mapping[str, Tensor]

Shares = tuple[float, float, float]

SHARES: tuple[Shares, ...] = (
    (0.0, 0.5, 0.5),
    (0.25, 0.375, 0.375),
    (0.5, 0.25, 0.25),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
)
"""Shares of the start, the strongly and the weakly held network; the first is the default."""

ALONE: tuple[Shares, ...] = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
"""Of trainings that began with heads of their own: too far apart for an average, one is taken."""


def average(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of equal networks' states, on the CPU.

    Whole numbers, such as counts of batches, are the last one's.

    Args:
        states: tensors by name, of equal shapes.
        shares: of each; they sum to 1.
    """
    mixed = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mixed[name] = last.cpu()
            continue
        # On the CPU: not every device has float64, and the start may lie there.
        parts = [s * state[name].cpu().double() for s, state in zip(shares, states, strict=True)]
        mixed[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mixed


def choose(losses: Sequence[Tensor], candidates: tuple[Shares, ...] = SHARES) -> Shares:
    """The shares with the lowest held-out loss; of `SHARES` if it is clearly below the default's.

    Clearly: by more than one standard error of the paired difference. Few pictures tell little, and
    the default is seldom far from the best.

    Args:
        losses: for each of the candidates the loss of each held-out sample `[N]`.
        candidates: `SHARES` or `ALONE`.
    """
    means = torch.stack([loss.mean() for loss in losses]).nan_to_num(nan=math.inf)
    best, count = int(means.argmin()), len(losses[0])
    if candidates is ALONE or means[0] == math.inf:
        return candidates[best]
    gain = losses[0] - losses[best]
    error = float(gain.std()) / math.sqrt(count) if count > 1 else math.inf
    return candidates[best] if float(gain.mean()) > error else candidates[0]


def percent(shares: Sequence[float]) -> str:
    """Shares in percent.

    Example:
        >>> percent((0.25, 0.375, 0.375))
        '25/37.5/37.5'
    """
    return "/".join(f"{100 * share:g}" for share in shares)


logger = logging.getLogger(__name__)


def select(prepared: Prepared, tuning: Tuning, folder: Path, *, to_keep: bool = True) -> Selected:
    """Fine-tunes, chooses epoch and average, and fine-tunes again where that is asked for.

    Args:
        prepared: the pictures, the network and its probe.
        tuning: options and method.
        folder: of the run. What a second branch leaves goes to `weaker/`.
        to_keep: whether the network is wanted; if not, there is no refit.
    """
    branches = tuning.branches
    refitting = to_keep and refits(tuning.config, prepared.task)
    if len(branches) == 1:
        chosen = hold_out(prepared, tuning, folder)
        if not refitting:
            return chosen
        chosen = dataclasses.replace(chosen, trained=())
        joined = join(prepared)
        tuned = refit(joined, tuning, folder, epoch=chosen.epoch)
        return dataclasses.replace(chosen, prepared=joined, tuned=tuned, refitted=True)
    strong, weak = branches
    folders = folder, folder / "weaker"
    return _average_of_two(prepared, (strong, weak), folders, refitting=refitting)


def _average_of_two(
    prepared: Prepared,
    branches: tuple[Tuning, Tuning],
    folders: tuple[Path, Path],
    *,
    refitting: bool,
) -> Selected:
    found = []
    for branch, folder in zip(branches, folders, strict=True):
        logger.info("strength %g", branch.strength)
        started = time.perf_counter()  # in the end that of the second training
        try:
            found.append(hold_out(prepared, branch, folder))
        except UserError as error:
            raise UserError(
                f"{error} (one of the two trainings of --strength auto, with strength "
                f"{branch.strength:g}; --strength 1 trains once)"
            ) from error
    strong, weak = found
    same_head = branches[0].method.head == branches[1].method.head
    candidates = SHARES if same_head else ALONE
    shares, losses, answers = _choose(strong, weak, branches[0], candidates)
    epoch = max(one.epoch * (share > 0) for one, share in zip(found, shares[1:], strict=True))
    chosen = dataclasses.replace(strong, epoch=epoch, answers=answers, refitted=False, trained=())
    tuned = [one.tuned for one in found]
    epochs = (strong.epoch, weak.epoch)
    del found, strong, weak
    if refitting:
        waited = time.perf_counter() - started
        joined, tuned = join(prepared), []
        for branch, folder, last, share in zip(branches, folders, epochs, shares[1:], strict=True):
            started = time.perf_counter()
            # What has no share needs no training.
            tuned.append(refit(joined, branch, folder, epoch=last if share else 0))
        started -= waited
        chosen = dataclasses.replace(chosen, prepared=joined, refitted=True)
    search = StrengthSearch(
        strengths=(branches[0].strength or 0.0, branches[1].strength or 0.0),
        shares=shares,
        losses=losses,
        epochs=epochs,
        seconds=round(time.perf_counter() - started, 1),
    )
    _tell(search)
    return dataclasses.replace(
        chosen, tuned=_averaged(tuned, shares, prepared.device), search=search
    )


def _choose(
    strong: Selected, weak: Selected, tuning: Tuning, candidates: tuple[Shares, ...]
) -> tuple[Shares, dict[str, float], Tensor]:
    """The shares to take, the held-out loss of all, and the answers of those taken."""
    objective, targets = strong.prepared.task.objective, strong.held_out.targets
    parts: dict[Shares, list[Tensor]] = {shares: [] for shares in candidates}
    for (prepared, one), (_, other) in zip(strong.trained, weak.trained, strict=True):
        loader = plain_loader(prepared.task.val, prepared.backbone.input, tuning.config)
        for shares, found in parts.items():
            network = _averaged([one, other], shares, prepared.device).network
            found.append(predict_answers(network, loader, objective))
    pooled = {shares: torch.cat(found) for shares, found in parts.items()}
    losses = {
        shares: objective.held_out_losses(objective.logits(found), targets)
        for shares, found in pooled.items()
    }
    shares = choose(list(losses.values()), candidates)
    means = {percent(one): round(float(loss.mean()), 6) for one, loss in losses.items()}
    return shares, means, pooled[shares]


def _averaged(tuned: Sequence[Tuned], shares: Shares, device: torch.device) -> Tuned:
    """The network with so much of its start and of each training's outcome."""
    states = [tuned[0].start, *(one.network.state_dict() for one in tuned)]
    network = copy.deepcopy(tuned[0].network)
    network.load_state_dict(average(states, shares))
    place(network, device)
    return dataclasses.replace(tuned[0], network=network)


def _tell(search: StrengthSearch) -> None:
    strong, weak = search.strengths
    if percent(SHARES[0]) not in search.losses:
        why = "the lowest validation loss"
    elif search.shares == SHARES[0]:
        why = "an equal average, as nothing was clearly better"
    else:
        why = "clearly better than an equal average"
    logger.info(
        "strength auto: %s percent of the start, of strength %g and of strength %g: %s",
        percent(search.shares),
        strong,
        weak,
        why,
    )
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in search.losses.items())
    logger.info("         validation loss %s; it took %.0f seconds", losses, search.seconds)
