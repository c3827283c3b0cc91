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
from delta_transfer.runs.fine_tune import FineTuneResult
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.selection import (
    SelectionResult,
    merge_train_and_val,
    refit,
    select_epoch,
    should_refit,
)
from delta_transfer.training.inference import predict_dataloader
from delta_transfer.utils.devices import move_to_device

State = Mapping[str, Tensor]

MixingCoefficients = tuple[float, float, float]

CANDIDATE_COEFFICIENTS: tuple[MixingCoefficients, ...] = (
    (0.0, 0.5, 0.5),
    (0.25, 0.375, 0.375),
    (0.5, 0.25, 0.25),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
)
"""Shares of the start, the strongly and the weakly held network; the first is the default."""

SINGLE_MODELS: tuple[MixingCoefficients, ...] = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
"""Of trainings that began with heads of their own: too far apart for an average, one is taken."""


def average_states(states: Sequence[State], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of equal networks' states, on the CPU.

    Whole numbers, such as counts of batches, are the last one's.

    Args:
        states: tensors by name, of equal shapes.
        coefficients: of each; they sum to 1.
    """
    mixed = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mixed[name] = last.cpu()
            continue
        # On the CPU: not every device has float64, and the start may lie there.
        parts = [
            s * state[name].cpu().double() for s, state in zip(coefficients, states, strict=True)
        ]
        mixed[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mixed


def choose_coefficients(
    losses: Sequence[Tensor], candidates: tuple[MixingCoefficients, ...] = CANDIDATE_COEFFICIENTS
) -> MixingCoefficients:
    """The shares with the lowest held-out loss; of `SHARES` if it is clearly below the default's.

    Clearly: by more than one standard error of the paired difference. Few images tell little, and
    the default is seldom far from the best.

    Args:
        losses: for each of the candidates the loss of each held-out sample `[N]`.
        candidates: `SHARES` or `ALONE`.
    """
    means = torch.stack([loss.mean() for loss in losses]).nan_to_num(nan=math.inf)
    best, count = int(means.argmin()), len(losses[0])
    if candidates is SINGLE_MODELS or means[0] == math.inf:
        return candidates[best]
    gain = losses[0] - losses[best]
    error = float(gain.std()) / math.sqrt(count) if count > 1 else math.inf
    return candidates[best] if float(gain.mean()) > error else candidates[0]


def format_percent(coefficients: Sequence[float]) -> str:
    """Shares in percent.

    Example:
        >>> format_percent((0.25, 0.375, 0.375))
        '25/37.5/37.5'
    """
    return "/".join(f"{100 * share:g}" for share in coefficients)


logger = logging.getLogger(__name__)


def select_model(plan: FineTunePlan, folder: Path, *, keep_network: bool = True) -> SelectionResult:
    """Fine-tunes, chooses epoch and average, and fine-tunes again where that is asked for.

    Args:
        plan: data, network, options and method.
        folder: of the run. What a second branch leaves goes to `weaker/`.
        keep_network: whether the network is wanted; if not, there is no refit.
    """
    branches = plan.candidates
    refitting = keep_network and should_refit(plan.config, plan.setup.task)
    assert refitting or not (keep_network and plan.config.folds)  # no fold's network is final
    if len(branches) == 1:
        chosen = select_epoch(plan, folder)
        if not refitting:
            return chosen
        chosen = dataclasses.replace(chosen, validation_results=())
        joined = merge_train_and_val(plan.setup)
        plan = dataclasses.replace(plan, setup=joined)
        tuned = refit(plan, folder, epoch=chosen.epoch)
        return dataclasses.replace(chosen, setup=joined, fine_tune_result=tuned, refitted=True)
    strong, weak = branches
    folders = folder, folder / "weaker"
    return _average_candidates((strong, weak), folders, refitting=refitting)


def _average_candidates(
    plans: tuple[FineTunePlan, FineTunePlan],
    folders: tuple[Path, Path],
    *,
    refitting: bool,
) -> SelectionResult:
    found, setup = [], plans[0].setup
    for branch, folder in zip(plans, folders, strict=True):
        logger.info("strength %g", branch.strength)
        started = time.perf_counter()  # in the end that of the second training
        try:
            found.append(select_epoch(branch, folder))
        except UserError as error:
            raise UserError(
                f"{error} (one of the two trainings of --strength auto, with strength "
                f"{branch.strength:g}; --strength 1 trains once)"
            ) from error
    strong, weak = found
    same_head = plans[0].method.head_init == plans[1].method.head_init
    candidates = CANDIDATE_COEFFICIENTS if same_head else SINGLE_MODELS
    shares, losses, answers = _evaluate_coefficients(strong, weak, plans[0], candidates)
    epoch = max(one.epoch * (share > 0) for one, share in zip(found, shares[1:], strict=True))
    chosen = dataclasses.replace(
        strong, epoch=epoch, predictions=answers, refitted=False, validation_results=()
    )
    tuned = [one.fine_tune_result for one in found]
    epochs = (strong.epoch, weak.epoch)
    del found, strong, weak
    if refitting:
        waited = time.perf_counter() - started
        joined, tuned = merge_train_and_val(setup), []
        for branch, folder, last, share in zip(plans, folders, epochs, shares[1:], strict=True):
            started = time.perf_counter()
            # What has no share needs no training.
            own = dataclasses.replace(branch, setup=joined)
            tuned.append(refit(own, folder, epoch=last if share else 0))
        started -= waited
        chosen = dataclasses.replace(chosen, setup=joined, refitted=True)
    search = StrengthSearch(
        strengths=(plans[0].strength or 0.0, plans[1].strength or 0.0),
        mixing_coefficients=shares,
        losses=losses,
        best_epochs=epochs,
        wall_time_s=round(time.perf_counter() - started, 1),
    )
    _log_search(search)
    return dataclasses.replace(
        chosen,
        fine_tune_result=_average_networks(tuned, shares, setup.device),
        strength_search=search,
    )


def _evaluate_coefficients(
    strong: SelectionResult,
    weak: SelectionResult,
    plan: FineTunePlan,
    candidates: tuple[MixingCoefficients, ...],
) -> tuple[MixingCoefficients, dict[str, float], Tensor]:
    """The shares to take, the held-out loss of all, and the answers of those taken."""
    task_type, targets = strong.setup.task.task_type, strong.held_out.targets
    parts: dict[MixingCoefficients, list[Tensor]] = {shares: [] for shares in candidates}
    for (setup, one), (_, other) in zip(
        strong.validation_results, weak.validation_results, strict=True
    ):
        loader = plan.loaders.eval_dataloader(setup.task.val)
        for shares, found in parts.items():
            network = _average_networks([one, other], shares, setup.device).network
            found.append(predict_dataloader(network, loader, task_type))
    pooled = {shares: torch.cat(found) for shares, found in parts.items()}
    losses = {
        shares: task_type.held_out_losses(task_type.logits(found), targets)
        for shares, found in pooled.items()
    }
    shares = choose_coefficients(list(losses.values()), candidates)
    means = {format_percent(one): round(float(loss.mean()), 6) for one, loss in losses.items()}
    return shares, means, pooled[shares]


def _average_networks(
    results: Sequence[FineTuneResult], coefficients: MixingCoefficients, device: torch.device
) -> FineTuneResult:
    """The network with so much of its start and of each training's outcome."""
    states = [results[0].initial_state, *(one.network.state_dict() for one in results)]
    network = copy.deepcopy(results[0].network)
    network.load_state_dict(average_states(states, coefficients))
    move_to_device(network, device)
    return dataclasses.replace(results[0], network=network)


def _log_search(search: StrengthSearch) -> None:
    strong, weak = search.strengths
    if format_percent(CANDIDATE_COEFFICIENTS[0]) not in search.losses:
        why = "the lowest validation loss"
    elif search.mixing_coefficients == CANDIDATE_COEFFICIENTS[0]:
        why = "an equal average, as nothing was clearly better"
    else:
        why = "clearly better than an equal average"
    logger.info(
        "strength auto: %s percent of the start, of strength %g and of strength %g: %s",
        format_percent(search.mixing_coefficients),
        strong,
        weak,
        why,
    )
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in search.losses.items())
    logger.info("         validation loss %s; it took %.0f seconds", losses, search.wall_time_s)
